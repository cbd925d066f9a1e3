#!/usr/bin/env bash
# Checks this folder against a running gateway:  deploy/check.sh ADDRESS [KEY]
#
# ADDRESS is that of a gateway which has served some local, remote and cached requests, such as `sluice demo`. Checked are
# the rules and their tests, the example configuration, the form of /metrics, that every metric which dashboard and rules
# name is there, and that Prometheus itself can evaluate every expression of both on what it scrapes from the gateway.
set -euo pipefail
cd "$(dirname "$0")"
address=${1:?usage: deploy/check.sh ADDRESS [KEY]}
address=${address%/}
key=${2:-}

if ! command -v promtool >/dev/null; then
  apt-get update -q && apt-get install -y -q --no-install-recommends prometheus
fi
work=$(mktemp -d)
prometheus_pid=
trap '[ -z "$prometheus_pid" ] || kill "$prometheus_pid" 2>/dev/null || true; wait; rm -rf "$work"' EXIT

promtool check rules prometheus/sluice.rules.yml
promtool check config prometheus/prometheus.yml
(cd prometheus && promtool test rules sluice.rules.test.yml)

curl --fail --silent --show-error ${key:+-H "Authorization: Bearer $key"} "$address/metrics" >"$work/metrics"
promtool check metrics <"$work/metrics"

python3 - "$work" <<'PYTHON'
import json, pathlib, re, sys
work = pathlib.Path(sys.argv[1])
exposed = set()
for line in (work / "metrics").read_text().splitlines():
    if line and not line.startswith("#"):
        exposed.add(re.match(r"[a-zA-Z_:][a-zA-Z0-9_:]*", line).group())
panels = json.loads(pathlib.Path("grafana/sluice.json").read_text())["panels"]
expressions = [(f"panel {panel['title']!r}", target["expr"]) for panel in panels for target in panel["targets"]]
rules = pathlib.Path("prometheus/sluice.rules.yml").read_text()
for block in re.split(r"\n\s+- alert: ", rules)[1:]:
    name = block.split("\n", 1)[0]
    expression = re.search(r"expr: (\|\n((?:\s{10,}.*\n)+)|.*\n)", block)
    expressions.append((f"alert {name}", (expression.group(2) or expression.group(1)).strip()))
labels = {"gen_ai_request_model", "gen_ai_response_model", "gen_ai_provider_name", "gen_ai_token_type"}
named = {(where, name) for where, expression in expressions
         for name in re.findall(r"\b(?:sluice|gen_ai)_[a-z_]+", expression) if name not in labels}
# These come with the first shadow run and the first graded request, which a demo has none of.
later = {"sluice_shadow_runs_total", "sluice_live_calibration_error"}
missing = [f"{where} names {name}, which the gateway does not expose" for where, name in sorted(named) if name not in exposed | later]
print(f"{len(expressions)} expressions name {len({name for _, name in named})} metrics, {len(missing)} uses are of missing ones")
print("\n".join(missing), end="\n" if missing else "")
plain = [(w, e.replace("$__rate_interval", "1m").replace("$__range", "1h").replace('"$instance"', '".*"').replace('"$tenant"', '".*"')) for w, e in expressions]
(work / "expressions.json").write_text(json.dumps(plain))
sys.exit(1 if missing else 0)
PYTHON

# A Prometheus of our own, with the example's rules, scrapes the gateway; then every expression is asked of it.
cp prometheus/sluice.rules.yml "$work/"
sed -e "s|127.0.0.1:8470|${address#*://}|" -e 's|15s|1s|' prometheus/prometheus.yml >"$work/prometheus.yml"
case $address in https://*) sed -i 's|job_name: sluice|&\n    scheme: https|' "$work/prometheus.yml" ;; esac
if [ -n "$key" ]; then
  printf %s "$key" >"$work/key"
  sed -i "s|job_name: sluice|&\n    authorization: { credentials_file: $work/key }|" "$work/prometheus.yml"
fi
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
prometheus --config.file="$work/prometheus.yml" --storage.tsdb.path="$work/data" --web.listen-address="127.0.0.1:$port" \
  >"$work/prometheus.log" 2>&1 &
prometheus_pid=$!
python3 - "$work" "http://127.0.0.1:$port" <<'PYTHON'
import json, pathlib, sys, time, urllib.parse, urllib.request
work, address = pathlib.Path(sys.argv[1]), sys.argv[2]
def get(path):
    with urllib.request.urlopen(f"{address}/api/v1/{path}", timeout=10) as response:
        return json.load(response)["data"]
for _ in range(300):
    try:
        if get("query?query=" + urllib.parse.quote("count_over_time(up{job='sluice'}[1m]) > 3"))["result"]:
            break
    except OSError:
        pass
    time.sleep(0.1)
else:
    sys.exit("Prometheus did not get to scrape the gateway:\n" + (work / "prometheus.log").read_text()[-2000:])
up = get("query?query=up")["result"]
assert all(series["value"][1] == "1" for series in up), f"the gateway can't be scraped: {up}"
failed, quiet = [], []
for where, expression in json.loads((work / "expressions.json").read_text()):
    try:
        result = get("query?query=" + urllib.parse.quote(expression))["result"]
        if where.startswith("panel") and not result:
            quiet.append(f"{where}: {expression}")
    except urllib.error.HTTPError as error:
        failed.append(f"{where}: {error.read().decode()[:300]}")
rules = [rule for group in get("rules")["groups"] for rule in group["rules"]]
failed += [f"alert {rule['name']}: {rule['lastError']}" for rule in rules if rule["health"] == "err"]
print(f"Prometheus evaluated all; {len(rules)} rules loaded; {len(quiet)} panel expressions without data:")
print("\n".join(f"  {line}" for line in quiet))
print("\n".join(failed), end="\n" if failed else "")
sys.exit(1 if failed else 0)
PYTHON
echo "deploy: all checks passed"
