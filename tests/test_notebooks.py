"""The notebooks: well formed, no stored outputs, and run from top to bottom in an empty folder with the wheel."""

import ast
import glob
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types
import venv

import made_up
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "launch").glob("*.ipynb"))

# What runs a notebook, in a process of its own: the warnings of what it uses are not this project's.
RUNNER = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
try:
  nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": sys.argv[2]}}).execute()
finally:
  nbformat.write(notebook, sys.argv[3])
"""

SMALL = {
  "ALBERT_STEPS": "12", "ALBERT_VOCAB_SIZE": "1000", "ALBERT_LENGTH": "32", "ALBERT_REFRESH": "1",
  "ALBERT_MORE": " ".join([
    "--config.model.num_hidden_layers=2", "--config.model.hidden_size=32", "--config.model.num_attention_heads=2",
    "--config.model.intermediate_size=64", "--config.model.embedding_size=16", "--config.batch_size=8",
    "--config.eval_batches=2",
  ]),
}  # fmt: skip


def code(notebook):
  return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_python_and_stores_no_outputs(path):
  notebook = json.loads(path.read_text())
  assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
  assert notebook["metadata"]["accelerator"] == "TPU"
  ids = [cell["id"] for cell in notebook["cells"]]
  assert len(set(ids)) == len(ids)
  for cell in notebook["cells"]:
    if cell["cell_type"] == "code":
      assert cell["outputs"] == []
      assert cell["execution_count"] is None
  for source in code(notebook):
    ast.parse(source)
  # All that a user, papermill or this test sets is in the first cell.
  assert "parameters" in next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")["metadata"]["tags"]
  assert all("os.environ.get" not in source for source in code(notebook)[1:])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_valid(path):
  nbformat = pytest.importorskip("nbformat", reason="needs nbformat")
  nbformat.validate(nbformat.read(path, as_version=4))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  """The wheel of this checkout."""
  for needed in ("nbclient", "nbformat", "ipykernel", "pip", "setuptools"):
    # Not imported: setuptools refuses to be where another test has imported distutils.
    if importlib.util.find_spec(needed) is None:
      pytest.skip(f"needs {needed}")
  out = tmp_path_factory.mktemp("wheel")
  build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", out, ROOT]
  subprocess.run(build, check=True, capture_output=True)
  return next(out.glob("*.whl"))


def python_without_this_project(folder):
  """The Python of a new environment with the packages that this project needs, but without this project."""
  venv.create(folder, with_pip=False)
  site = next(folder.glob("lib/*/site-packages"))
  # What .pth files add, such as a checkout installed as editable, is not followed from here.
  site.joinpath("packages.pth").write_text(
    "\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n"
  )
  return folder / "bin/python"


def run_notebook(name, folder, wheel, **parameters):
  """Runs a notebook from top to bottom as a user who uploaded it and the wheel into an empty folder.

  Returns:
    (what its cells printed, their other outputs, the folder of its work).
  """
  empty = folder / "empty"
  empty.mkdir()
  shutil.copy(wheel, empty)
  shutil.copy(ROOT / "launch" / name, empty)
  env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
  env |= {**parameters, "ALBERT_SOURCE": "albert_jax-*.whl", "JAX_PLATFORMS": "cpu", "IPYTHONDIR": str(folder)}
  python = python_without_this_project(folder / "venv")
  result = subprocess.run(
    [python, "-c", RUNNER, empty / name, empty, folder / "done.ipynb"],
    env=env, cwd=empty, capture_output=True, text=True, timeout=900, check=False,
  )  # fmt: skip
  assert result.returncode == 0, result.stderr[-3000:]
  outputs = [
    out for cell in json.loads((folder / "done.ipynb").read_text())["cells"] for out in cell.get("outputs", ())
  ]
  work = empty / "albert_work"
  assert {path.name for path in empty.iterdir()} == {name, wheel.name, work.name}
  printed = "".join("".join(out.get("text", "")) for out in outputs)
  assert f"everything is written to {work}" in printed
  assert list((folder / "venv").glob("lib/*/site-packages/albert_jax")), "the notebook installed the wheel"
  return printed, outputs, work


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
@pytest.mark.parametrize(
  ("source", "message"),
  [("none-*.whl", "names 0 files"), ("albertjax", "is no wheel"), ("https://127.0.0.1:9/x", "finds no repository")],
)
def test_a_wrong_source_is_refused_before_anything_else(path, source, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("ALBERT_SOURCE", source)
  first, install = code(json.loads(path.read_text()))[:2]
  with pytest.raises((OSError, ValueError), match=message):
    exec(f"{first}\n{install}", {})
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_git_asks_for_no_password_where_there_is_no_repository(path, tmp_path, monkeypatch):
  git = tmp_path / "git"
  git.write_text(f'#!/bin/sh\necho "prompt=$GIT_TERMINAL_PROMPT" > {tmp_path}/seen\nexit 128\n')
  git.chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  monkeypatch.setenv("ALBERT_SOURCE", "https://example.org/none")
  first, install = code(json.loads(path.read_text()))[:2]
  with pytest.raises(ValueError, match="finds no repository"):
    exec(f"{first}\n{install}", {})
  assert (tmp_path / "seen").read_text() == "prompt=0\n"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_on_kaggle_the_uploaded_wheel_is_used_and_a_missing_network_is_reported(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("ALBERT_SOURCE", "albert_jax-*.whl")
  monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
  searched, real = [], glob.glob

  def kaggle_glob(pattern, **options):
    searched.append(pattern)
    return ["/kaggle/input/mine/albert_jax-1.whl"] if pattern.startswith("/kaggle/input/") else real(pattern, **options)

  def offline(*_, **__):
    raise OSError("no route")

  monkeypatch.setattr("glob.glob", kaggle_glob)
  monkeypatch.setattr("socket.create_connection", offline)
  monkeypatch.setattr("subprocess.run", lambda *_, **__: types.SimpleNamespace(returncode=1))  # Nothing is installed.
  first, install = code(json.loads(path.read_text()))[:2]
  with pytest.raises(OSError, match="has no internet; turn it on"):
    exec(f"{first}\n{install}", {})
  assert "/kaggle/input/**/albert_jax-*.whl" in searched


@pytest.mark.slow
def test_the_pretraining_notebook_runs_from_top_to_bottom(tmp_path, wheel):
  printed, outputs, work = run_notebook("colab_pretrain.ipynb", tmp_path, wheel, **SMALL)
  assert any("image/png" in out.get("data", {}) for out in outputs), "no curves"
  assert '"filled"' in printed
  assert "parameters" in printed
  assert {path.name for path in work.iterdir()} >= {"vocab", "data", "run", "albert.zip"}
  assert (work / "run" / "export" / "model.safetensors").exists()


def test_the_fine_tuning_notebook_takes_a_single_file(tmp_path, capsys):
  (tmp_path / "reviews.csv").write_text("text,label\n" + "A film.,good\n" * 60)
  commands, path = [], ROOT / "launch/colab_finetune.ipynb"
  names = {
    "DATA": str(tmp_path / "reviews.csv"), "CHECKPOINT": "runs/mine", "EPOCHS": 2.0, "LENGTH": 32, "BATCH": 10,
    "MORE": [], "work": tmp_path, "pathlib": pathlib, "albert": lambda *args: args, "train": commands.append,
  }  # fmt: skip
  cells = code(json.loads(path.read_text()))
  exec(next(cell for cell in cells if "data.iterdir()" in cell), names)
  cell = next(cell for cell in cells if "train_file =" in cell)
  exec(cell[cell.index("train_file =") :], names)
  assert capsys.readouterr().out == "reviews.csv\n"
  expected = {"--config.data.validation_fraction=0.1", "--config.eval_every=2"}
  assert expected <= set(commands[0]) and f"--config.data.dataset={tmp_path}/reviews.csv" in commands[0]


@pytest.mark.slow
def test_the_fine_tuning_notebook_runs_from_top_to_bottom(tmp_path, wheel):
  checkpoint = made_up.checkpoint(tmp_path)
  printed, outputs, work = run_notebook(
    "colab_finetune.ipynb", tmp_path, wheel, ALBERT_CHECKPOINT=str(checkpoint), ALBERT_EPOCHS="0.2", ALBERT_LENGTH="32",
    ALBERT_BATCH="64", ALBERT_REFRESH="1", ALBERT_MORE="--config.optimizer.learning_rate=1e-3",
  )  # fmt: skip
  assert any("image/png" in out.get("data", {}) for out in outputs), "no curves"
  answers = [json.loads(line) for line in printed.splitlines() if line.startswith('{"text"')]
  assert len(answers) == 3
  assert {answer["label"] for answer in answers} <= set(answers[0]["scores"]) == {
    "asyncio", "email", "logging", "multiprocessing", "unittest", "xml",
  }  # fmt: skip
  assert f"{answers[0]['score']:6.1%}  {answers[0]['label']}" in printed, "Python says the same"
  assert {path.name for path in work.iterdir()} >= {"labels", "run", "albert_classifier.zip"}


@pytest.mark.slow
def test_the_phoneme_notebook_runs_from_top_to_bottom(tmp_path, wheel):
  for needed in ("phonemizer", "espeakng_loader"):
    pytest.importorskip(needed, reason="needs espeak-ng: pip install 'albert-jax[speech]'")
  corpus = made_up.write(tmp_path / "corpus.txt", made_up.documents(40))
  settings = dict(SMALL)
  # One program to compile instead of three.
  settings["ALBERT_MORE"] += " --config.curriculum.seq_length= --config.curriculum.batch_size="
  printed, outputs, work = run_notebook(
    "colab_plbert.ipynb", tmp_path, wheel, **settings, ALBERT_CORPUS=str(corpus), ALBERT_LANGUAGE="de",
    XDG_CACHE_HOME=str(tmp_path / "cache"),
  )  # fmt: skip
  assert any("image/png" in out.get("data", {}) for out in outputs), "no curves"
  assert "strangest words: " in printed, "the audit"
  assert "always the most frequent symbol" in printed, "numbers beside baselines"
  rows = printed[printed.index("predicted phonemes") :].splitlines()[1:13]
  assert "MM" in rows[0] and len(rows[1].split()) >= 4
  assert "all weights are bit for bit the model's" in printed
  assert {path.name for path in work.iterdir()} >= {"phonemes", "run", "plbert", "plbert.zip"}
  assert (work / "plbert" / "step_12.t7").exists()
