#!/usr/bin/env bash
# Report cards of a model quantised, with half of its weights zeroed, with fewer layers, and healed: one table.
# usage: pruned.sh MODEL LAYERS HALF TOKENS TEXT CALIBRATION RECORDS [OPTION of sluice eval card]...
#   such as pruned.sh sluice-nano 3 2 500000 prose.txt words.txt train.jsonl.gz --suite test.jsonl.gz --limit 500
# MODEL is a GGUF file of the plain Llama architecture or a model of the catalog; it is widened first, so the first column is the
# model dense. LAYERS are kept of it for the columns "depth", HALF for "half", each healed with the dense model as teacher on TOKENS
# tokens of RECORDS (`pydoc` for Python's own documentation, out of the python that runs this). TEXT is foretold, CALIBRATION what
# Wanda and the influence of layers are measured on. Needs SLUICE, a binary with the lab, or builds it; leaves files and cards in
# .cache/pruned.
set -euo pipefail
cd "$(dirname "$0")/../.."
model=$1 layers=$2 half=$3 tokens=$4 text=$5 calibration=$6 records=$7
shift 7
[ -n "${SLUICE:-}" ] || cargo build --release -p router --features lab
sluice=${SLUICE:-${CARGO_TARGET_DIR:-target}/release/sluice}
name=$(basename "${model%.gguf}")
out=.cache/pruned/$name
mkdir -p "$out"
dense=$out/dense.gguf
if [ "$records" = pydoc ]; then
    records=$out/records.jsonl
    python3 benches/peers/pydoc_records.py >"$records"
fi
"$sluice" quantize --model "$model" --to f32 --requantize --out "$dense" --json >/dev/null
card() { # NAME FILE OPTIONS
    echo "  $1" >&2
    "$sluice" eval card --before "$dense" --after "$2" --perplexity "$text" "${@:3}" --json >"$out/$1.card.json"
}
heal() { # NAME FROM
    cat >"$out/$1.recipe.toml" <<TOML
name = "$1"
seed = 7
format = "f16"
[data]
licences = ["Apache-2.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC0-1.0", "CDLA-Sharing-1.0", "MIT", "project", "PSF-2.0"]
decline = "HANDOFF"
prompt_weight = ${PROMPT_WEIGHT:-0.0}
long_records = "skip"
holdout_share = 0.02
[start]
model = "$2"
[training]
tokens = $tokens
batch_tokens = 2048
peak_rate = ${RATE:-2e-4}
warm_up = $((tokens / 20))
floor = 0.05
weight_decay = 0.05
clip = 1.0
threads = ${THREADS:-2}
precision = "bf16"
TOML
    "$sluice" distill "$out/$1.recipe.toml" --teacher "$dense" --data "$records" --folder "$out/$1" >"$out/$1.log" 2>&1
}
for format in q8_0 q4_0; do
    "$sluice" quantize --model "$dense" --to $format --out "$out/$format.gguf" --json >/dev/null
    card $format "$out/$format.gguf" "$@"
done
for zeros in wanda magnitude 2:4; do
    "$sluice" prune --model "$dense" --zeros $zeros --calibrate "$calibration" --out "$out/$zeros.gguf" --json >/dev/null
    card $zeros "$out/$zeros.gguf" "$@"
done
for kept in "depth $layers" "half $half"; do
    read -r kind count <<<"$kept"
    "$sluice" prune --model "$dense" --layers "$count" --calibrate "$calibration" --to f32 --out "$out/$kind.gguf" --json >"$out/$kind.json"
    card "$kind" "$out/$kind.gguf" "$@"
    heal "$kind-healed" "$(realpath "$out/$kind.gguf")"
    card "$kind-healed" "$out/$kind-healed/model.gguf" "$@"
done
python3 benches/peers/cards.py "$out"/{q8_0,q4_0,wanda,magnitude,2:4,depth,depth-healed,half,half-healed}.card.json
