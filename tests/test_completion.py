"""Tab completion, tried in the shell where it is there."""

import shutil
import subprocess

import pytest

from albert_jax.commands import completion


@pytest.fixture(scope="module")
def commands():
  return completion.words()


def test_words_come_from_the_commands_parsers(commands):
  assert "--workdir" in commands["train"] and "--config.optimizer.learning_rate" in commands["train"]
  assert "pretrain:base" in commands["train"]["--config"]
  assert commands["prepare"]["--runner"] == ["local", "beam"]
  assert set(commands["completion"]) >= set(completion.SHELLS)


@pytest.mark.parametrize(
  ("line", "expected"),
  [
    ("albert-jax tra", {"train"}),
    ("albert-jax prepare --run", {"--runner"}),
    ("albert-jax prepare --runner=b", {"beam"}),
    ("albert-jax train --config=pretr", {"pretrain", "pretrain:base"}),
    ("albert-jax train --config=pretrain:b", {"base"}),
    ("albert-jax train --config.optimizer.learn", {"--config.optimizer.learning_rate="}),
  ],
)
def test_bash_completes(commands, line, expected, tmp_path):
  last = line.rsplit(" ", 1)[1]
  script = tmp_path / "script"
  script.write_text(
    f'{completion.bash(commands)}\nCOMP_LINE="{line}" COMP_POINT={len(line)} COMP_WORDS=({line})\n'
    f'COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n_albert_jax; printf "%s\\n" "${{COMPREPLY[@]}}"\n'
  )
  done = subprocess.run(["bash", script], capture_output=True, text=True, check=True)
  assert set(done.stdout.split()) == expected, last


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_accept_their_scripts(commands, shell, tmp_path):
  script = tmp_path / "script"
  script.write_text(getattr(completion, shell)(commands))
  if not shutil.which(shell):
    assert "albert-jax" in script.read_text()  # Without the shell, only that it is made.
    return
  subprocess.run([shell, "-n", script], check=True)
