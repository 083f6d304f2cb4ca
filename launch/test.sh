#!/usr/bin/env bash
# Makes .venv, installs, and runs the checks: lint, types, tests.
#   launch/test.sh                        the quick tests: every promise, at small size
#   launch/test.sh --all                  also those marked slow, as .ci/run does
#   launch/test.sh tests/test_model.py -k remat    any other argument goes to pytest
# Tests on real data run when ALBERT_DATA names its folder; without it they are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
lane=(-m "not slow")
if [[ ${1:-} == --all ]]; then
  lane=()
  shift
fi
EXTRAS="test"
source launch/venv.sh
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
# Without bytecode, each worker compiles all tests anew, and each command that a test starts the package.
unset PYTHONDONTWRITEBYTECODE
ruff check .
ruff format --check .
mypy
# In the order of the names, as the end-to-end tests are the longest file: taken last, one worker would wait for it.
python -m pytest -n "${WORKERS:-2}" --dist loadfile --no-loadscope-reorder "${lane[@]}" "$@"
