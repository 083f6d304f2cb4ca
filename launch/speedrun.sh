#!/usr/bin/env bash
# From raw text to a measured model with the best recipe known here, as a row for docs/leaderboard.md: makes .venv,
# installs, trains a vocabulary, prepares the corpus, trains the config `pretrain:small`, and evaluates it.
#
#   launch/speedrun.sh --corpus='wiki_en/*.txt'
#   launch/speedrun.sh --corpus='wiki_en/*.txt' --out=runs/other -- --config.seed=1 --config.steps=8000
#
#   --corpus=INPUT   what `albert-jax prepare --input` takes: a quoted glob, a folder, several with commas
#   --out=DIR        vocabulary, dataset and run; default runs/speedrun. Given again, it goes on where it was
#   --vocab_size=N   pieces of the vocabulary; default 8000
#   -- FLAGS         more flags for `albert-jax train`; a row with some is a trial, not a record of the recipe
#
# The held-out documents are chosen by a hash of their text, so they are the same in every run on the same corpus. The
# held-out loss is that of the first 1,600 rows of 128 tokens, 30 % of them masked as single words, for every recipe.
set -euo pipefail

usage() { sed -n '2,/^set /{s/^# \{0,1\}//;/^set /!p;}' "$0"; }
die() {
  echo "launch/speedrun.sh: $1" >&2
  exit 2
}

corpus='' out=runs/speedrun vocab_size=8000 flags=()
while (($#)); do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --corpus=*) corpus=${1#*=} ;;
    --out=*) out=${1#*=} ;;
    --vocab_size=*) vocab_size=${1#*=} ;;
    --) flags=("${@:2}") && break ;;
    *) die "$1 is unknown; it takes --corpus=INPUT, --out=DIR, --vocab_size=N and, after --, flags of albert-jax train" ;;
  esac
  shift
done
[[ -n $corpus ]] || die "--corpus is missing; give your text, as --corpus='corpus/*.txt'"
[[ -n $out ]] || die "--out is empty; give a folder, as --out=runs/speedrun"
start=$PWD
cd "$(dirname "$0")/.."
ROOT=$PWD
# shellcheck source=launch/venv.sh
source launch/venv.sh
cd "$start" # --corpus and --out are relative to where the script was called.

SECONDS=0
if [[ ! -f $out/vocab/spiece.model ]]; then
  echo "1/4 vocabulary"
  albert-jax vocab --input="$corpus" --out="$out/vocab" --vocab_size="$vocab_size" --input_sentence_size=150000
fi
if [[ ! -f $out/data/prepare.json ]]; then
  echo "2/4 dataset"
  albert-jax prepare --input="$corpus" --spm="$out/vocab/spiece.model" --out="$out/data" --segment_tokens=128
fi
prepared=$SECONDS
echo "3/4 training"
config=$ROOT/configs/pretrain.py:small
albert-jax train --config="$config" --config.data.dataset="$out/data" --workdir="$out/run" ${flags[@]+"${flags[@]}"}
trained=$((SECONDS - prepared))
echo "4/4 evaluation"
albert-jax evaluate --checkpoint="$out/run" --config="$config" --config.data.dataset="$out/data" \
  --config.data.mask_rate=0.3 --config.data.ngram=1 --config.data.seq_length=128 --config.batch_size=16 --config.eval_batches=100 \
  --json="$out/heldout.json" >/dev/null
python "$ROOT/benchmarks/leaderboard_row.py" "$out" --prepare_seconds="$prepared" --train_seconds="$trained"
