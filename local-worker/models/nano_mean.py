#!/usr/bin/env python3
"""The mean of two models' weights: `nano_mean.py ONE.gguf OTHER.gguf SHARE_OF_OTHER OUT.gguf`, of the same tensors in the same formats.

Weights are widened, averaged and stored in the format they had; everything else is ONE's. Needs the packages `gguf` and `numpy`.
"""

import shutil
import sys

import numpy as np
from gguf import GGUFReader, quants


def main():
    one, other, share, out = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4]
    shutil.copy(one, out)
    others = {tensor.name: tensor for tensor in GGUFReader(other).tensors}
    with open(out, "r+b") as file:
        for tensor in GGUFReader(one).tensors:
            beside = others[tensor.name]
            if tensor.tensor_type != beside.tensor_type or list(tensor.shape) != list(beside.shape):
                sys.exit(f"{tensor.name}: the models differ in format or size")
            values = [quants.dequantize(t.data, t.tensor_type).astype(np.float32) for t in (tensor, beside)]
            mean = ((1 - share) * values[0] + share * values[1]).astype(np.float32)
            file.seek(tensor.data_offset)
            file.write(quants.quantize(mean, tensor.tensor_type).tobytes())


main()
