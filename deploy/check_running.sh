#!/usr/bin/env bash
# Starts gateways and looks at them as operators do:  deploy/check_running.sh BINARY [FOLDER FOR SCREENSHOTS]
#
# A demo with its thirty requests behind it: /metrics, rules and dashboard (check.sh), the page in Chromium. A gateway with
# a keys file that has served nothing: the page asks for the key, then says what to do; /metrics is closed to others.
set -euo pipefail
binary=$(realpath "${1:?usage: deploy/check_running.sh BINARY [FOLDER FOR SCREENSHOTS]}")
shots=${2:+$(realpath -m "$2")}
cd "$(dirname "$0")/.."

if ! command -v chromium >/dev/null; then
  apt-get update -q && apt-get install -y -q --no-install-recommends chromium
fi
work=$(mktemp -d)
pids=()
stop() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait
  rm -rf "$work"
}
trap stop EXIT

# Waits until the file holds a line with the word; prints the address in that line.
address_in() {
  for _ in $(seq 600); do
    if grep -q "$2" "$1"; then
      grep "$2" "$1" | grep -o 'http://[0-9.:]*' | tail -1
      return
    fi
    sleep 0.2
  done
  echo "no \"$2\" after two minutes:" >&2
  cat "$1" >&2
  return 1
}

"$binary" demo --port 0 >"$work/demo" 2>&1 &
pids+=($!)
demo=$(address_in "$work/demo" "the page is at")
deploy/check.sh "$demo"
# What a client sends must stay text on the page; whether it is answered is not the matter here.
"$binary" ask --address "$demo" --label 'note=<img src=x onerror=alert(1)><script>alert(2)</script>' "Hello." >/dev/null || true
python3 router/tests/page.py "$demo" ${shots:+--shots "$shots"}

key=$(head -c 24 /dev/urandom | base64)
cat >"$work/keys.toml" <<KEYS
[[keys]]
name = "viewer"
tenant = "acme"
roles = ["usage-all"]
sha256 = "$(printf %s "$key" | sha256sum | cut -d' ' -f1)"
KEYS
# Not the variables of whoever runs this: settings refuse `SLUICE_*` that they don't know, such as the test command's own.
env -i PATH="$PATH" HOME="$work" SLUICE_LISTEN=127.0.0.1:0 SLUICE_DATA_DIR="$work/data" SLUICE_KEYS_FILE="$work/keys.toml" SLUICE_TELEMETRY__LOG_FILTER=error \
  "$binary" serve >"$work/serve" 2>&1 &
pids+=($!)
serve=$(address_in "$work/serve" READY)
python3 router/tests/page.py "$serve" --key "$key" --expect-empty --binary "$binary" ${shots:+--shots "$shots/empty"}
code=$(curl --silent --output /dev/null --write-out '%{http_code}' "$serve/metrics")
[ "$code" = 401 ] || { echo "/metrics answered $code without a key" >&2; exit 1; }
curl --fail --silent -H "Authorization: Bearer $key" "$serve/metrics" | grep -q '^sluice_policy_certified'
for pid in "${pids[@]}"; do kill "$pid"; done
for pid in "${pids[@]}"; do wait "$pid"; done
pids=()
echo "a running gateway: all checks passed"
