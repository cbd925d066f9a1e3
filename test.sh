#!/usr/bin/env bash
# The one test command: formatting, lints, tests, docs, then the product as a user sees it.
# Installs what a new Debian machine lacks. Two cores and about half an hour are enough.
set -euo pipefail
cd "$(dirname "$0")"

step() { printf '\n== %s\n' "$1"; }

step "format"
cargo fmt --all --check

step "lints"
cargo clippy --workspace --all-targets --features local-worker/lab -- -D warnings
