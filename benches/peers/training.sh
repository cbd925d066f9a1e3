#!/usr/bin/env bash
# A training step beside PyTorch's (f32, AdamW, two threads) on the same shapes: tokens a second, side by side.
# Needs Python; keeps what it fetches in .cache/peers. Nothing of PyTorch is used anywhere else.
set -euo pipefail
cd "$(dirname "$0")/../.."
cache=.cache/peers
mkdir -p "$cache"
if [ ! -x "$cache/torch/bin/python" ]; then
    python3 -m venv "$cache/torch"
    "$cache/torch/bin/pip" install --quiet numpy torch==2.15.0
fi
[ -n "${TRAIN_SPEED:-}" ] || cargo build --release -p local-worker --features lab --example train_speed
speed=${TRAIN_SPEED:-${CARGO_TARGET_DIR:-target}/release/examples/train_speed}
"$cache/torch/bin/python" benches/peers/training.py "$speed" "$@"
