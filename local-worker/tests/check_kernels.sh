#!/usr/bin/env bash
# The kernels' own tests under tools that see what a test can't. Miri, where `rustup +nightly component add miri` can be had,
# interprets the scalar twins and knows every kind of undefined behaviour. The address sanitizer of a nightly compiler runs
# every form this processor has and stops at a byte outside of its place; so does valgrind, which knows no AVX-512, and
# stops at what depends on memory never written as well. Tools that are missing are named, not installed; one at least
# has to be there. Builds the kernels alone, which takes a minute.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
alone=${TEST_CACHE:-$root/.cache}/kernels
mkdir -p "$alone/src"
ln -sfn "$root/local-worker/src/kernels.rs" "$alone/src/kernels.rs"
ln -sfn "$root/local-worker/src/kernels" "$alone/src/kernels"
echo "#[allow(dead_code, reason = \"the rest of the crate uses it\")] pub mod kernels;" > "$alone/src/lib.rs"
version() { sed -n "s/^$1 = .*\"\([0-9][0-9.]*\)\".*/\1/p" "$root/Cargo.toml" | head -n 1; }
cat > "$alone/Cargo.toml" <<TOML
[package]
name = "kernels"
version = "0.0.0"
edition = "2024"
[features]
default = ["lab"]
lab = []
[dependencies]
gemm = { version = "$(version gemm)", default-features = false, features = ["std"] }
half = "$(version half)"
memmap2 = "$(version memmap2)"
serde = { version = "$(version serde)", features = ["derive"] }
[dev-dependencies]
proptest = { version = "$(version proptest)", default-features = false, features = ["std"] }
[profile.dev]
opt-level = 1
debug = "line-tables-only"
[workspace]
TOML
cp "$root/Cargo.lock" "$alone/Cargo.lock"
cd "$alone"
export CARGO_TARGET_DIR="$alone/target"
host=$(rustc -vV | sed -n 's/^host: //p')
ran=
if cargo +nightly miri --version > /dev/null 2>&1; then
    echo "== Miri: scalar twins"
    # It takes a thousand times as long: tests ask less of themselves under it.
    MIRIFLAGS="-Zmiri-disable-isolation" cargo +nightly miri test --lib
    ran=yes
else
    echo "no Miri: rustup +nightly component add miri"
fi
if cargo +nightly --version > /dev/null 2>&1; then
    echo "== address sanitizer: every form this processor has"
    RUSTFLAGS="-Zsanitizer=address" cargo +nightly test --quiet --lib --target "$host"
    ran=yes
else
    echo "no address sanitizer: it wants a nightly compiler"
fi
if command -v valgrind > /dev/null; then
    echo "== valgrind: scalar and AVX2 forms"
    binary=$(cargo test --quiet --lib --no-run --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
    valgrind --quiet --error-exitcode=1 "$binary" --test-threads=1
    ran=yes
else
    echo "no valgrind"
fi
[ -n "$ran" ]
