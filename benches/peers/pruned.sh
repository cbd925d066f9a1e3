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
changed() { # NAME VERB OPTION...: changes the dense model, which prints the card
    echo "  $1" >&2
    "$sluice" "$2" --model "$dense" --out "$out/$1.gguf" --perplexity "$text" "${@:3}" --json >"$out/$1.card.json"
}
heal() { # NAME: trains it on
    echo "  $1-healed" >&2
    python3 benches/peers/student_recipe.py name="$1-healed" start="$(realpath "$out/$1.gguf")" tokens="$tokens" peak_rate="${RATE:-2e-4}" \
        prompt_weight="${PROMPT_WEIGHT:-0.0}" holdout_share=0.02 threads="${THREADS:-2}" >"$out/$1-healed.recipe.toml"
    "$sluice" distill "$out/$1-healed.recipe.toml" --teacher "$dense" --data "$records" --folder "$out/$1-healed" >"$out/$1-healed.log" 2>&1
    "$sluice" eval card --before "$dense" --after "$out/$1-healed/model.gguf" --perplexity "$text" "${@:2}" --json >"$out/$1-healed.card.json"
}
for format in q8_0 q4_0; do
    changed $format quantize --to $format "$@"
done
for zeros in wanda magnitude 2:4; do
    changed $zeros prune --zeros $zeros --calibrate "$calibration" "$@"
done
changed depth prune --layers "$layers" --calibrate "$calibration" --to f32 "$@"
heal depth "$@"
changed half prune --layers "$half" --calibrate "$calibration" --to f32 "$@"
heal half "$@"
python3 benches/peers/cards.py "$out"/{q8_0,q4_0,wanda,magnitude,2:4,depth,depth-healed,half,half-healed}.card.json
