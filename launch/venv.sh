# shellcheck shell=bash
# Sourced by the launch scripts: makes .venv with Python 3.11 or newer, installs this checkout with the extras named in
# EXTRAS (such as "test"), and puts it on PATH. Quick when nothing has changed.

find_python() {
  local name
  for name in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python3; do
    if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "No Python 3.11 or newer found; install one, or say where it is: PYTHON=/path/to/python3 $0" >&2
  return 1
}

if [[ ! -x .venv/bin/python ]]; then
  python=$(find_python)
  echo "Making .venv with $("$python" --version)" >&2
  "$python" -m venv .venv
fi
installed=.venv/installed${EXTRAS:+-$EXTRAS}
if [[ ! -f $installed || pyproject.toml -nt $installed ]]; then
  echo "Installing albert_jax and what it needs; the first time this takes a minute or two" >&2
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${EXTRAS:+[$EXTRAS]}"
  touch "$installed"
fi
export PATH="$PWD/.venv/bin:$PATH"
