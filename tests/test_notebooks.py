"""The notebooks: well formed, nothing stored in them, and run from top to bottom at a small size."""

import ast
import json
import os
import pathlib
import subprocess
import sys

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


def run_notebook(name, folder, **parameters):
  """Runs a notebook from top to bottom; a user opens it in the checkout, or clones one; here the first.

  Returns: (what its cells printed, their other outputs, the folder of its work).
  """
  for needed in ("nbclient", "nbformat", "ipykernel"):
    pytest.importorskip(needed, reason=f"needs {needed}")
  work = folder / "work"
  env = {**os.environ, **parameters, "ALBERT_WORK": str(work), "JAX_PLATFORMS": "cpu", "IPYTHONDIR": str(folder)}
  result = subprocess.run(
    [sys.executable, "-c", RUNNER, ROOT / "launch" / name, ROOT / "launch", folder / "done.ipynb"],
    env=env, capture_output=True, text=True, timeout=900,
  )  # fmt: skip
  assert result.returncode == 0, result.stderr[-3000:]
  outputs = [
    out for cell in json.loads((folder / "done.ipynb").read_text())["cells"] for out in cell.get("outputs", ())
  ]
  assert not (ROOT / "launch" / "albert_work").exists()
  return "".join("".join(out.get("text", "")) for out in outputs), outputs, work


@pytest.mark.slow
def test_the_pretraining_notebook_runs_from_top_to_bottom(tmp_path):
  printed, outputs, work = run_notebook("colab_pretrain.ipynb", tmp_path, **SMALL)
  assert any("image/png" in out.get("data", {}) for out in outputs), "no curves"
  assert '"filled"' in printed
  assert "parameters" in printed
  assert {path.name for path in work.iterdir()} >= {"vocab", "data", "run", "albert.zip"}
  assert (work / "run" / "export" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_fine_tuning_notebook_runs_from_top_to_bottom(tmp_path):
  checkpoint = made_up.checkpoint(tmp_path)
  printed, outputs, work = run_notebook(
    "colab_finetune.ipynb", tmp_path, ALBERT_CHECKPOINT=str(checkpoint), ALBERT_EPOCHS="0.2", ALBERT_LENGTH="32",
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
