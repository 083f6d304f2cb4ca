"""What every command does before it begins."""

import os
import re
import shlex
import subprocess
import sys
import types

import pytest

from albert_jax.__main__ import main
from albert_jax.commands import COMMANDS, common, corpus


@pytest.fixture
def environment(monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
    monkeypatch.delenv(name, raising=False)
  yield tmp_path
  for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
    os.environ.pop(name, None)  # Set by the function under test, so unknown to monkeypatch.


def test_compiled_programs_are_kept_and_found_again(environment):
  common.keep_compiled()
  folder = os.environ["JAX_COMPILATION_CACHE_DIR"]
  assert folder.startswith(str(environment / "cache" / "albert_jax"))
  # A chain long enough to take the compiler a while.
  program = """if True:
    import jax, jax.monitoring, jax.numpy as jnp
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    hits = []
    jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if "cache_hits" in name else None)
    jax.jit(lambda x: jnp.sin(jnp.linalg.inv(x)) @ x)(jnp.eye(7)).block_until_ready()
    print(len(hits))"""
  counts = [
    int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    for _ in range(2)
  ]
  assert counts[0] == 0
  assert counts[1] > 0


def test_the_user_s_own_folder_counts(environment, monkeypatch):
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
  common.keep_compiled()
  assert os.environ["JAX_COMPILATION_CACHE_DIR"] == ""


def test_a_home_that_cannot_be_written_to_is_no_reason_to_stop(environment):
  (environment / "cache").write_text("a file where the folder should be")
  common.keep_compiled()
  assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_memory_of_one_step_is_kept_for_the_next_on_processors_only(monkeypatch):
  switches = {}
  libc = types.SimpleNamespace(mallopt=lambda switch, value: switches.update({switch: value}))
  monkeypatch.setattr(common.ctypes, "CDLL", lambda name: libc)
  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  common.keep_memory()
  assert switches == {}
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  common.keep_memory()
  # malloc.h: M_ARENA_MAX = -8, M_MMAP_MAX = -4, M_TRIM_THRESHOLD = -1.
  assert switches == {-8: 1, -4: 0, -1: 2**31 - 1}


def test_a_hint_repeats_the_flags_that_were_given():
  parser = common.parser("vocab", "", "")
  corpus.add_arguments(parser)
  args = parser.parse_args(["--input=my books/*.txt", "--layout=book", "--tfds_split=train"])
  assert corpus.flags(args) == "--input='my books/*.txt' --layout=book"


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_the_terminal_and_says_what_each_flag_means(command, columns, monkeypatch):
  monkeypatch.setenv("COLUMNS", str(columns))
  parser = common.parser_of(command)
  text = parser.format_help()
  assert max(map(len, text.splitlines())) <= columns
  example = text.partition("\nexample:\n")[2]
  assert shlex.split(example)[:2] == ["albert-jax", command] or "albert-jax completion" in example
  for action in parser._actions:
    assert re.sub(r"\(default.*?\)", "", action.help or "").strip(), f"{action.option_strings} has no meaning"


def test_the_list_of_commands_fits_the_terminal(capsys):
  assert main(["--help"]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert max(map(len, lines)) <= 80
  assert "  albert-jax doctor" in lines


def test_a_long_example_is_broken_between_words():
  parser = common.parser(
    "x", "Does it.", 'albert-jax x --first=aaaaaaaaaaaaaaaaaaaaa --second=bbbbbbbbbbbbb "two words"'
  )
  lines = parser.epilog.splitlines()
  assert lines[0] == "example:"
  text = common._Help("x", width=50)._fill_text(parser.epilog, 50, "")
  assert all(len(line) <= 50 for line in text.splitlines())
  assert shlex.split(text.partition("\n")[2].replace("\\\n", "")) == shlex.split(lines[1])
