#!/usr/bin/env bash
# Drives a running gateway with an official client of another language: Python's grpcio, stubs made from the proto alone.
# Usage: run.sh PATH_TO_SLUICE [pytest arguments]. Needs Python 3.9 or newer and the package index the first time.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
root="$(cd "$here/../../.." && pwd)"
binary="$(cd "$(dirname "$1")" && pwd)/$(basename "$1")"
shift
cache="${TEST_CACHE:-$root/.cache}/wire"
if [ ! -x "$cache/venv/bin/pytest" ]; then
  python3 -m venv "$cache/venv"
  "$cache/venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
fi
(cd "$root/proto" && "$cache/venv/bin/buf" lint .)
rm -rf "$cache/stubs"
mkdir -p "$cache/stubs"
"$cache/venv/bin/python" -m grpc_tools.protoc -I "$root/proto" \
  --python_out="$cache/stubs" --grpc_python_out="$cache/stubs" "$root"/proto/sluice/v1/*.proto
PYTHONPATH="$cache/stubs" SLUICE_BINARY="$binary" exec "$cache/venv/bin/pytest" -q -p no:cacheprovider "$here" "$@"
