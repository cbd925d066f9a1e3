#!/usr/bin/env bash
# The engine beside llama.cpp (through llama-cpp-python, built here from source) and stock candle, on real and random models.
# Needs a C++ compiler, cmake and Python; keeps what it fetches, builds and makes in .cache/peers.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=.cache/peers
mkdir -p "$cache"
if [ ! -x "$cache/python/bin/python" ]; then
    python3 -m venv "$cache/python"
    # Built for this processor, as llama.cpp is at its best.
    CMAKE_ARGS="-DGGML_NATIVE=ON" "$cache/python/bin/pip" install --quiet llama-cpp-python==0.3.36 gguf numpy
fi
python=$cache/python/bin/python
smollm2=$(sh local-worker/tests/fetch_smollm2.sh)
make_model() { # NAME TOKENIZER FORMAT WIDTH LAYERS HEADS KEY_HEADS FEED_FORWARD
    local out=$cache/$1.gguf
    [ -f "$out" ] || "$python" benches/peers/random_gguf.py "$2" "$out" "${@:3}" >&2
    echo "$out"
}
nano=local-worker/models/sluice-nano-v1.gguf
files=(
    "$smollm2"
    "$(make_model random-14m-q8_0 "$nano" Q8_0 512 4 8 8 1280)"
    "$(make_model random-14m-q4_k "$nano" Q4_K 512 4 8 8 1280)"
    "$(make_model random-1b-q8_0 "$smollm2" Q8_0 2048 16 32 8 8192)"
    "$(make_model random-1b-q4_k "$smollm2" Q4_K 2048 16 32 8 8192)"
)
if [ -f local-worker/tests/fetch_gemma3.sh ]; then
    files+=("$(sh local-worker/tests/fetch_gemma3.sh | tail -n 1)")
fi
cargo build --release -p benches --features peers --bin engine-peer
"$python" benches/peers/compare.py "${CARGO_TARGET_DIR:-target}/release/engine-peer" "$@" "${files[@]}"
