"""What every command has in common: its exit codes, and one line for whatever went wrong."""

import errno
import os
import pathlib
import re
import signal
import subprocess
import sys
import types

import made_up
import pytest

import albert_jax
from albert_jax import __main__ as main
from albert_jax import files, signals
from albert_jax.commands import common
from albert_jax.errors import UserError


def run(*argv, **options):
  return subprocess.run(
    [sys.executable, "-m", "albert_jax", *argv], capture_output=True, text=True, check=False, **options
  )


@pytest.fixture
def fails(monkeypatch, capsys):
  """Runs a command that raises an error; returns (exit code, what standard error holds)."""

  def command(error):
    def raises(argv):
      raise error

    monkeypatch.setattr(main, "_imported", lambda name: types.SimpleNamespace(main=raises))
    return main.main(["vocab"]), capsys.readouterr().err

  return command


def test_every_failure_is_one_line(fails):
  assert fails(UserError("give --a")) == (2, "albert-jax vocab: give --a\n")
  assert fails(KeyError("x")) == (1, "albert-jax vocab: KeyError: 'x' (ALBERT_JAX_TRACEBACK=1 shows where)\n")
  code, text = fails(OSError(errno.ENOSPC, "No space left on device", "f"))
  assert code == 1 and text.startswith("albert-jax vocab: f: No space left on device; make room, or")
  assert "ulimit -f unlimited" in fails(OSError(errno.EFBIG, "File too large", "f"))[1]
  assert fails(KeyboardInterrupt()) == (130, "albert-jax vocab: interrupted\n")
  code, text = fails(RuntimeError("one\ntwo"))
  assert code == 1 and text.count("\n") == 1
  assert "S3CR3T" not in fails(UserError("http://me:S3CR3T@host is not there"))[1]


@pytest.mark.parametrize(("number", "code", "message"), [
  (signal.SIGTERM, 143, "stopped by SIGTERM"), (signal.SIGINT, 130, "interrupted"),
  (signal.SIGHUP, 129, "stopped by SIGHUP"),
])  # fmt: skip
def test_a_command_that_is_asked_to_end_removes_its_files_and_says_so(
  monkeypatch, capsys, tmp_path, number, code, message
):
  def command(argv):
    with files.writing(tmp_path / "out") as temporary:
      pathlib.Path(temporary).touch()
      try:
        signal.raise_signal(number)
      finally:
        signal.raise_signal(signal.SIGTERM)  # A second signal does not interrupt the removal of files.

  before = [signal.getsignal(each) for each in signals.STOPPING]
  monkeypatch.setattr(main, "_imported", lambda name: types.SimpleNamespace(main=command))
  assert main.main(["vocab"]) == code
  assert capsys.readouterr().err == f"albert-jax vocab: {message}\n"
  assert list(tmp_path.iterdir()) == []
  assert [signal.getsignal(each) for each in signals.STOPPING] == before


def test_under_nohup_a_closed_terminal_ends_nothing(monkeypatch, capsys):
  monkeypatch.setattr(main, "_imported", lambda name: types.SimpleNamespace(main=lambda _: os.kill(os.getpid(), 1)))
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    assert main.main(["vocab"]) == 0
  finally:
    signal.signal(signal.SIGHUP, before)
  assert capsys.readouterr().err == ""


def test_the_environment_asks_for_the_traceback(fails, monkeypatch):
  monkeypatch.setenv("ALBERT_JAX_TRACEBACK", "1")
  code, text = fails(KeyError("x"))
  assert (
    code == 1 and "Traceback (most recent call last)" in text and text.endswith("albert-jax vocab: KeyError: 'x'\n")
  )


def test_version_and_a_wrong_command(capsys):
  assert main.main(["--version"]) == 0
  assert capsys.readouterr().out == f"albert-jax {albert_jax.__version__}\n"
  assert main.main(["trian"]) == 2
  assert "did you mean train?" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["reference", "config_fields"])
def test_help_of_a_page_generator_writes_no_file(module, tmp_path):
  command = [sys.executable, "-m", f"albert_jax.commands.{module}", "--help"]
  done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
  assert done.returncode == 0 and "FILE" in done.stdout
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stream", [1, 2])
def test_a_closed_stream_is_one_line(stream):
  # The shell closes it: a function between fork and exec is a warning beside JAX's threads.
  command = f'exec "{sys.executable}" -m albert_jax --version {stream}>&-'
  done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
  assert done.returncode == 1
  assert "is closed" in done.stdout + done.stderr and (done.stdout + done.stderr).count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_standard_output_is_one_line():
  with open("/dev/full", "w") as full:
    done = subprocess.run(
      [sys.executable, "-m", "albert_jax", "--version"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
    )
  assert done.returncode == 1
  assert done.stderr == "albert-jax: standard output cannot be written to: No space left on device\n"


def a_parser():
  parser = common.parser("x", "description", "example")
  parser.add_argument("--workdir", required=True, metavar="DIR")
  parser.add_argument("--json", default="", metavar="FILE")
  return parser


def test_paths_are_read_alike(monkeypatch, capsys):
  monkeypatch.setenv("HOME", "/me")
  args = a_parser().parse_args(["--workdir=~/run"])
  assert (args.workdir, args.json) == ("/me/run", "")
  for argv in (["--workdir="], ["--workdir=x", "--json="]):
    with pytest.raises(SystemExit) as stop:
      a_parser().parse_args(argv)
    text = capsys.readouterr().err
    assert stop.value.code == 2 and "is empty" in text and text.count("\n") == 1


def test_a_wrong_flag_names_the_near_one(capsys):
  with pytest.raises(SystemExit) as stop:
    a_parser().parse_args(["--workdr=x"])
  assert stop.value.code == 2
  assert (
    capsys.readouterr().err
    == "albert-jax x: there is no flag --workdr; did you mean --workdir?; see albert-jax x --help\n"
  )


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (["--batch_size=8"], "there is no flag --batch_size; did you mean --config.batch_size=8?"),
    (["batch_size=8"], "batch_size=8: a field of the config is set with a flag; did you mean --config.batch_size=8?"),
    (["config.model.hidden_size=64"], "did you mean --config.model.hidden_size=64?"),
    (["--learning_rate=1"], "did you mean --config.optimizer.learning_rate=1?"),
    (["--workdr=x"], "did you mean --workdir?"),
    (["--config.batch_size", "8"], "--config.batch_size has no value; write --config.batch_size=8"),
    (["--config.batch_size", "--workdir=x"], "write --config.batch_size=VALUE"),
    (["--config=pretrain:tinny"], "no variant 'tinny'; use one of quickstart, tiny, small, base"),
    (["--config=pretrain:tinny"], "did you mean tiny?"),
    (["--config=glue:sst2"], "also as sst-2-xxlarge; did you mean sst-2?"),
    (["--config=plbert:bse"], "no variant 'bse'; use one of base, small; did you mean base?"),
    (["--config=pretrain:tiny", "--config.optimizer.name=adam"], "use one of adamw, lamb, lion, muon; did you mean"),
  ],
)  # fmt: skip
def test_a_wrong_argument_of_train_names_the_right_one(args, message, capsys):
  config = [] if args[0].startswith("--config=") else ["--config=pretrain:tiny"]
  try:
    code = main.main(["train", "--workdir=x", *config, *args])
  except SystemExit as stop:
    code = stop.code
  text = capsys.readouterr().err
  assert code == 2 and message in text and text.count("\n") == 1


def test_a_missing_argument_is_shown_as_it_is_typed(capsys):
  with pytest.raises(SystemExit):
    main.main(["train", "--config=pretrain:tiny"])
  text = capsys.readouterr().err
  assert text.startswith("albert-jax train: needs --workdir=DIR (") and text.count("\n") == 1
  with pytest.raises(SystemExit):
    main.main(["plot"])
  assert "plot: needs [NAME=]RUN; see albert-jax plot --help" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("override", "message"),
  [
    ("--config.batchsize=8", "no field batchsize; did you mean batch_size?"),
    ("--config.learning_rate=1", "did you mean optimizer.learning_rate?"),
    ("--config.data.dtaset=x", "did you mean data.dataset?"),
    ("--config.batch_size=abc", "expected a whole number, such as --config.batch_size=32"),
    ("--config.batch_size=1.5", "expected a whole number"),
    ("--config.optimizer.textbook=maybe", "expected true or false"),
    ("--config.optimizer.eps=nan", "expected a number"),
    ("--config.optimizer=adamw", "optimizer is a section"),
  ],
)
def test_the_one_wrong_override_is_named(override, message):
  with pytest.raises(UserError) as error:
    common.with_overrides(common.load_config("pretrain:tiny"), ["--config.seed=1", override, "--config.steps=3"])
  assert str(error.value).startswith(override) and message in str(error.value)
  assert "seed=1" not in str(error.value)


@pytest.mark.parametrize(("text", "message"), [
  ("def get_config():\n  return 5\n", "get_config returned 5; expected an ml_collections.ConfigDict"),
  ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
  ("def get_config(: \n", "line 1: SyntaxError"),
  ("x = 1\n", "AttributeError"),
])  # fmt: skip
def test_a_config_file_with_an_error_of_its_own_is_one_line(tmp_path, text, message):
  (tmp_path / "mine.py").write_text(text)
  with pytest.raises(UserError, match=re.escape(message)) as error:
    common.load_config(str(tmp_path / "mine.py"))
  assert "\n" not in str(error.value)


def test_a_config_file_that_is_no_python_file_is_one_line(tmp_path):
  (tmp_path / "mine.txt").write_text("steps = 5\n")
  with pytest.raises(UserError, match=r"mine\.txt must be a Python file, as configs/pretrain\.py:tiny$"):
    common.load_config(str(tmp_path / "mine.txt"))


def test_another_shape_than_the_checkpoints_is_refused(tmp_path):
  config, begin = common.load_config("classify:tiny"), f"--config.init_from={made_up.checkpoint(tmp_path)}"
  assert common.with_overrides(config, ["--config.model.hidden_size=64"]).model.hidden_size == 64
  with pytest.raises(
    UserError, match=r"--config\.model\.hidden_size=64 has no effect: .*init_from=.*, with hidden_size=32"
  ):
    common.with_overrides(config, ["--config.model.hidden_size=64", begin])
  common.with_overrides(config, ["--config.model.hidden_size=32", "--config.model.hidden_dropout_prob=0.1", begin])


@pytest.mark.parametrize(("argv", "message"), [
  (["convert", "--checkpoint=a", "--out=b", "--positions=interpolate"],
   "--positions has no effect without --max_position_embeddings"),
  (["convert", "--checkpoint=a", "--out=b", "--init_from_group0"], "without --num_hidden_groups"),
  (["export", "--checkpoint=a", "--out=b", "--max_loss=1"], "--max_loss has no effect without --quantize"),
  (["prepare", "--input=a", "--spm=b", "--out=c", "--runner=local", "--beam_options=--x"],
   "--beam_options=--x has no effect without --runner=beam"),
  (["prepare", "--input=a", "--spm=b", "--out=c", "--workers=0"], "--workers=0: expected 1 or more"),
])  # fmt: skip
def test_a_flag_without_its_partner_is_refused(argv, message, capsys):
  try:
    code = main.main(argv)
  except SystemExit as stop:  # argparse's way
    code = stop.code
  assert code == 2
  assert message in capsys.readouterr().err


def test_overrides_are_applied_and_home_folders_found(monkeypatch):
  monkeypatch.setenv("HOME", "/me")
  overrides = ["--config.steps=3", "--config.data.dataset=~/a,~/b", "--config.init_from=~/c", "--config.log_to=a=b"]
  config = common.with_overrides(common.load_config("pretrain:tiny"), overrides)
  assert (config.steps, config.data.dataset, config.init_from) == (3, "/me/a,/me/b", "/me/c")
  assert config.log_to == "a=b"
