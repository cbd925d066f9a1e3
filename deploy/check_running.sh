#!/usr/bin/env bash
# Starts the demo with the given binary, then checks metrics, rules and page of the running gateway, and ends it.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
binary="${1:?usage: check_running.sh PATH_TO_SLUICE}"
work=$(mktemp -d)
"$binary" demo >"$work/log" 2>&1 &
demo=$!
trap 'kill -INT "$demo" 2>/dev/null || true; wait "$demo" || true; rm -rf "$work"' EXIT
for _ in $(seq 600); do
  grep -q 'the page is at' "$work/log" && break
  kill -0 "$demo" 2>/dev/null || { cat "$work/log"; exit 1; }
  sleep 0.1
done
address=$(sed -n 's/^the page is at \(http:[^ ]*[0-9]\).*/\1/p' "$work/log")
bash "$root/deploy/check.sh" "$address"
if ! command -v chromium >/dev/null; then
  apt-get update -q && apt-get install -y -q --no-install-recommends chromium
fi
python3 "$root/router/tests/page.py" "$address" --shots "$work/shots"
