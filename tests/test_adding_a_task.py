"""The example of docs/contributing/adding_a_task.md is run from the page."""

import importlib
import pathlib
import re
import sys
import types

import jax
import made_up
import pytest

from albert_jax import convert, tasks
from albert_jax.errors import UserError
from albert_jax.exports.folder import export, export_run
from albert_jax.model import task_heads

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "contributing" / "adding_a_task.md"


@pytest.fixture
def example(monkeypatch):
  """Returns the page's blocks as the modules that they are for; returns both."""
  blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
  modules = []
  for name, block in zip(("albert_jax.tasks.question", "albert_jax.configs.question"), blocks, strict=True):
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(block, str(PAGE), "exec"), module.__dict__)
    modules.append(module)
  monkeypatch.setattr(tasks, "NAMES", (*tasks.NAMES, "question"))
  [row] = re.findall(r'^`"question": (lambda.*),`$', PAGE.read_text("utf-8"), re.M)
  monkeypatch.setitem(task_heads.HEADS, "question", eval(row))
  return modules


def test_the_example_trains_and_answers(example, tmp_path):
  module, config_file = example
  checkpoint = made_up.checkpoint(tmp_path)
  for split, rows in {"train": 4, "dev": 3}.items():
    lines = [f"Bade{'fi' * i}?,1\nBa gu.,0\n" for i in range(rows)]
    (tmp_path / f"{split}.csv").write_text("text,label\n" + "".join(lines))
  config = config_file.get_config("tiny")
  cfg, _ = convert.load(checkpoint)
  config.update({"batch_size": 8, "model": {name: getattr(cfg, name) for name in tasks.STRUCTURE}})
  config.data.dataset = str(tmp_path)
  task = tasks.make(config, convert.load_tokenizer(checkpoint))
  assert task.train_rows == 8
  assert tasks.is_metric(config.best, task.metrics)
  assert task.baselines["accuracy"][0] == 0.5
  params = jax.jit(task.init)(jax.random.key(0))
  head = {path: leaf.shape for path, leaf in params["question"].items()}
  assert head == task_heads.HEADS["question"](cfg.hidden_size, 1)
  (batch,) = task.eval_batches(0, 1)
  sums = jax.jit(task.sums)(params, dict(batch.items()), None)
  assert float(sums["loss"][1]) == 6
  assert 0 <= float(sums["accuracy"][0]) <= 6
  answers = module.is_question(cfg, params, task.vocabulary, ["Badefi?", "Ba."], threshold=0.0001)
  assert [answer["question"] for answer in answers] == [True, True]
  export_run(tmp_path / "run" / "export", cfg, params, vocabulary=task.vocabulary, architecture=task.architecture,
             extra=task.about, run=tmp_path, run_config={}, name="run")  # fmt: skip
  assert "albert_jax.load" in (tmp_path / "run" / "export" / "README.md").read_text("utf-8")
  export(tmp_path / "run", tmp_path / "exported", formats=("stablehlo",))
  with pytest.raises(UserError, match="must be between 0 and 1"):
    config.task.threshold = 2.0
    tasks.make(config, task.vocabulary)


def test_the_config_is_imported_by_its_name(example):
  assert importlib.import_module("albert_jax.configs.question").get_config().task.name == "question"
