#!/usr/bin/env bash
# Everything that is measured of a sluice-nano for its card, and the outcomes that its scorer learns from.
# usage: nano_evidence.sh MODEL.gguf RECORDS_FOLDER CORPUS_FOLDER ROUTING_FOLDER OUT_FOLDER
# RECORDS_FOLDER is what nano_records.py wrote, CORPUS_FOLDER and ROUTING_FOLDER hold the project's data sets. Then
#   nano_card.py OUT_FOLDER                                               the tables of the card
#   sluice train scorer --outcomes OUT_FOLDER/outcomes.jsonl --out sluice-nano-v1.scorer --solve POLICY.toml...
# Two evaluations run side by side, a thread each. Needs SLUICE, a binary, or builds it, and python3.
set -euo pipefail
model=$(realpath "$1") records=$(realpath "$2") corpus=$(realpath "$3") routing=$(realpath "$4")
sluice=${SLUICE:-} python=$(command -v "${PYTHON:-python3}")
mkdir -p "$5"
out=$(realpath "$5")
# Paths that were given are of the folder that this was called from.
[ -z "$sluice" ] || sluice=$(realpath "$(command -v "$sluice")")
[[ $python = /* ]] || python=$PWD/$python
cd "$(dirname "$0")"
if [ -z "$sluice" ]; then
    cargo build --release -p router
    sluice=$(realpath "../../${CARGO_TARGET_DIR:-target}/release/sluice")
fi
asked() { # NAME SUITE OPTION...: evaluates; a file that is there is whole
    "$sluice" eval model --model "$model" --suite "$2" "${@:3}" --json >"$out/$1.part"
    mv "$out/$1.part" "$out/$1.json"
}
"$python" nano_outcomes.py "$records" "$corpus" "$routing" "$out/outcomes.suite.jsonl.gz"
"$python" nano_unseen.py "$corpus/test.jsonl.gz" "$out/unseen.suite.jsonl.gz"
rm -f "$out"/{outcomes,unseen,test,official,dev,held}.json
# Whatever fails ends both sides.
aside=
trap '[ -z "$aside" ] || { pkill -P "$aside" || true; kill "$aside"; } 2>/dev/null || true' EXIT
{
    asked outcomes "$out/outcomes.suite.jsonl.gz" --drafts "$out/outcomes.jsonl"
    asked unseen "$out/unseen.suite.jsonl.gz"
} &
aside=$!
asked test "$corpus/test.jsonl.gz"
asked official "$corpus/test_official_intents.jsonl.gz" --answers "$out/official.jsonl"
asked dev "$corpus/dev.jsonl.gz"
asked held "$out/unseen.suite.jsonl.gz" --choices --tasks labels_sentiment labels_spam labels_clickbait labels_language_id
wait "$aside"
aside=
