#!/usr/bin/env bash
# The formats that `sluice quantize` writes: a report card of each, and each file's perplexity in llama.cpp beside the engine's.
# usage: formats.sh MODEL TEXT [OPTION of sluice quantize]...   such as --suite test.jsonl.gz --limit 500
# Last the speed of both on two of the files, by compare.py, if compare.sh has built its engine-peer.
# MODEL is a GGUF file or `sluice-nano`. Weights are widened first, so the first column is the model dense. Needs SLUICE or the
# release binary, and what compare.sh keeps in .cache/peers, or a python with llama-cpp-python and numpy in $PYTHON; leaves files
# and cards in .cache/formats.
set -euo pipefail
cd "$(dirname "$0")/../.."
model=$1 text=$2
shift 2
sluice=${SLUICE:-${CARGO_TARGET_DIR:-target}/release/sluice}
python=${PYTHON:-.cache/peers/python/bin/python}
name=$(basename "${model%.gguf}")
out=.cache/formats/$name
mkdir -p "$out"
"$sluice" quantize --model "$model" --to f32 --requantize --out "$out/f32.gguf" --json >"$out/f32.card.json"
files=("$out/f32.gguf")
for format in q8_0 q6_k q4_k q5_0 q4_0; do
    "$sluice" quantize --model "$out/f32.gguf" --to "$format" --out "$out/$format.gguf" --perplexity "$text" "$@" --json \
        >"$out/$format.card.json"
    files+=("$out/$format.gguf")
done
"$python" benches/peers/cards.py "$out"/{q8_0,q6_k,q5_0,q4_k,q4_0}.card.json
echo
"$python" benches/peers/perplexity.py "$sluice" "$text" "${files[@]}"
peer=${ENGINE_PEER:-${CARGO_TARGET_DIR:-target}/release/engine-peer}
if [ -x "$peer" ]; then
    echo
    "$python" benches/peers/compare.py "$peer" --rounds 3 --candle-rounds 0 "$out"/{q8_0,q4_k}.gguf
fi
