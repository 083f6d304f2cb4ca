"""Tab completion, tried in the shell where it is there."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time

import pytest

from albert_jax.commands import completion


@pytest.fixture(scope="module")
def commands():
  return completion.words()


def test_words_come_from_the_commands_parsers(commands):
  assert "--workdir=" in commands["train"] and "--config.optimizer.learning_rate=" in commands["train"]
  assert "pretrain:base" in commands["train"]["--config="]
  assert commands["prepare"]["--runner="] == ["local", "beam"]
  assert commands["prepare"]["--overwrite"] == [], "a switch takes no value"
  assert set(commands["completion"]) >= set(completion.SHELLS)


@pytest.mark.parametrize(
  ("line", "expected"),
  [
    ("albert-jax tra", {"train"}),
    ("albert-jax prepare --run", {"--runner="}),
    ("albert-jax prepare --runner=b", {"beam"}),
    ("albert-jax prepare --overw", {"--overwrite"}),
    ("albert-jax completion ", {"bash", "zsh", "fish"}),
    ("albert-jax train --workdir=ru", {"runs"}),
    ("albert-jax plot ru", {"runs"}),
    ("albert-jax train --config=pretr", {"pretrain", "pretrain:base"}),
    ("albert-jax train --config=pretrain:b", {"base"}),
    ("albert-jax train --config.optimizer.learn", {"--config.optimizer.learning_rate="}),
  ],
)
def test_bash_completes(commands, line, expected, tmp_path):
  last = line.rsplit(" ", 1)[1]
  (tmp_path / "runs").mkdir()
  script = tmp_path / "script"
  script.write_text(
    f'{completion.bash(commands)}\nCOMP_LINE="{line}" COMP_POINT={len(line)} COMP_WORDS=({line})\n'
    f'COMP_CWORD={line.count(" ")}\n_albert_jax; printf "%s\\n" "${{COMPREPLY[@]}}"\n'
  )
  done = subprocess.run(["bash", script], capture_output=True, text=True, check=True, cwd=tmp_path)
  assert set(done.stdout.split()) == expected, last


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_accept_their_scripts(commands, shell, tmp_path):
  script = tmp_path / "script"
  script.write_text(getattr(completion, shell)(commands))
  if not shutil.which(shell):
    assert "albert-jax" in script.read_text()  # Without the shell, only that it is made.
    return
  subprocess.run([shell, "-n", script], check=True)


TYPED = [
  ("albert-jax tra", "albert-jax train "),
  ("albert-jax train --wo", "albert-jax train --workdir="),
  ("albert-jax train --workdir=ru", "albert-jax train --workdir=runs/"),
  ("albert-jax train --config=pretrain:b", "albert-jax train --config=pretrain:base "),
  ("albert-jax train --config.optimizer.learn", "albert-jax train --config.optimizer.learning_rate="),
  ("albert-jax prepare --overw", "albert-jax prepare --overwrite "),
]


@pytest.mark.parametrize(("shell", "options"), [("bash", ["--norc"]), ("zsh", ["-f"]), ("fish", ["--no-config"])])
def test_the_tab_key_completes(commands, shell, options, tmp_path):
  if not shutil.which(shell):
    pytest.skip(f"needs {shell}")
  (tmp_path / "runs").mkdir()
  (tmp_path / "script").write_text(getattr(completion, shell)(commands))
  # A process that opens the terminal after setsid has it as its own, which interactive shells expect. pty.fork would
  # fork this process, in which JAX has threads.
  terminal, other_end = pty.openpty()
  start = "import os, sys; os.setsid(); os.close(os.open(sys.argv[1], os.O_RDWR)); os.execvp(sys.argv[2], sys.argv[2:])"
  process = subprocess.Popen(
    [sys.executable, "-c", start, os.ttyname(other_end), shell, *options, "-i"], cwd=tmp_path,
    stdin=other_end, stdout=other_end, stderr=other_end,
    env={**os.environ, "HOME": str(tmp_path), "TERM": "dumb", "COLUMNS": "150"},
  )  # fmt: skip
  os.close(other_end)

  def shown_until(text, seconds=60.0):
    shown, end = "", time.monotonic() + seconds
    while text not in shown and time.monotonic() < end:
      if select.select([terminal], [], [], 0.1)[0]:
        shown += os.read(terminal, 65536).decode("utf-8", "replace")
        shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|[\x07\x08]", "", shown)
    return shown

  try:
    os.write(terminal, f"source {tmp_path}/script; echo read'y'\n".encode())
    assert "ready" in shown_until("ready")
    for typed, completed in TYPED:
      os.write(terminal, f"{typed}\t".encode())
      expected = completed.rstrip("= ") if shell == "fish" else completed  # Fish adds no "=".
      assert expected in shown_until(expected), typed
      os.write(terminal, b"\x15")  # Ctrl-U removes the line.
  finally:
    process.kill()
    process.wait()
    os.close(terminal)
