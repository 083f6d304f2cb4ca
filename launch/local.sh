#!/usr/bin/env bash
# From a bare machine to a trained ALBERT: makes .venv, installs, builds a vocabulary and a dataset from the
# documentation that ships with Python, pre-trains a small model on it, and fills some masks with it.
# Needs Python 3.11 or newer and the package index, nothing else. Run again, it goes on where it was, or says it is done.
#
#   launch/local.sh            workdir runs/quickstart
#   launch/local.sh --help
set -euo pipefail

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  sed -n '2,/^set /{s/^# \{0,1\}//;/^set /!p}' "$0"
  exit 0
fi
if (($#)); then
  echo "launch/local.sh takes no arguments, got: $*; to train on your own text see README.md" >&2
  exit 2
fi

cd "$(dirname "$0")/.."
source launch/venv.sh
RUN=runs/quickstart
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} # The run is small; on an accelerator set JAX_PLATFORMS='' yourself.

if [[ ! -f $RUN/vocab/spiece.model ]]; then
  albert-jax vocab --input=python_docs --tfds_dir=$RUN/tfds --out=$RUN/vocab --vocab_size=4096
fi
if [[ ! -f $RUN/data/corpus/prepare.json ]]; then
  albert-jax prepare --input=python_docs --tfds_dir=$RUN/tfds --spm=$RUN/vocab/spiece.model --out=$RUN/data \
    --segment_tokens=64
fi
albert-jax train --config=configs/pretrain.py:quickstart --config.data.dataset=$RUN/data --workdir=$RUN/run

echo
echo "Filling masks:"
albert-jax predict --checkpoint=$RUN/run/export --task=fill-mask --top_k=3 \
  "Return the [MASK] of the list." \
  "If the file does not exist, an exception is [MASK]." \
  "The default value is [MASK]."
