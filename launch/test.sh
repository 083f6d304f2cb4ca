#!/usr/bin/env bash
# Makes .venv, installs and runs the tests. Arguments go to pytest: launch/test.sh tests/test_model.py -k remat
# Tests on real data run when ALBERT_DATA names its folder, and are skipped, with a word, where it does not.
set -euo pipefail
cd "$(dirname "$0")/.."
EXTRAS=test
source launch/venv.sh
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
ruff check .
ruff format --check .
python -m pytest -n "${WORKERS:-2}" --dist loadfile "$@"
