#!/usr/bin/env bash
# Builds the gateway for small machines and runs it:  deploy/edge.sh [TARGET...]
#
# Targets: aarch64-unknown-linux-gnu (run under qemu-user) and x86_64-unknown-linux-musl (static, run as it is); both by
# default. For each the binary, `sluice demo --once` and the worker's tests. Installs Debian's cross compilers where they lack, and
# the standard library by rustup.
set -euo pipefail
cd "$(dirname "$0")/.."
targets=("$@")
[ $# -gt 0 ] || targets=(aarch64-unknown-linux-gnu x86_64-unknown-linux-musl)
export CARGO_TARGET_DIR="${EDGE_TARGET_DIR:-$PWD/target/edge}"
cargo="${CARGO:-cargo}"

install() {
  if ! command -v "$1" >/dev/null; then
    apt-get update -q && apt-get install -y -q --no-install-recommends "${@:2}"
  fi
}

for target in "${targets[@]}"; do
  runner=()
  case "$target" in
  aarch64-unknown-linux-gnu)
    install aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross
    install qemu-aarch64 qemu-user
    runner=(qemu-aarch64 -L /usr/aarch64-linux-gnu)
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="${runner[*]}"
    export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc
    # Emulated, real weights take hours: their tests find none and say so. The families' checkpoints are small.
    export TEST_MODELS="$CARGO_TARGET_DIR/none"
    ;;
  x86_64-unknown-linux-musl)
    install musl-gcc musl-tools
    export CC_x86_64_unknown_linux_musl=musl-gcc
    ;;
  *)
    echo "edge.sh knows aarch64-unknown-linux-gnu and x86_64-unknown-linux-musl, not $target" >&2
    exit 2
    ;;
  esac
  rustup target add "$target"
  echo "== $target: the gateway"
  "$cargo" build --release --target "$target" -p router
  binary="$CARGO_TARGET_DIR/$target/release/sluice"
  ls -l "$binary"
  echo "== $target: the demo"
  "${runner[@]}" "$binary" demo --once
  echo "== $target: the worker's tests"
  "$cargo" test --release --target "$target" -p local-worker --features hub
done
