"""What every task states of itself, and what others rely on."""

import dataclasses
import importlib
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_models import SMALL

from albert_jax import convert, paths, tasks
from albert_jax.errors import UserError
from albert_jax.model import task_heads
from albert_jax.tasks import base, classify, glue

CONFIGS = {
  "pretrain": "pretrain", "classify": "classify", "glue": "glue", "squad": "squad", "ner": "ner", "choice": "race",
  "retrieve": "retrieve", "summarize": "summarize", "plbert": "plbert",
}  # fmt: skip


def config_of(name, **task):
  config = importlib.import_module(f"albert_jax.configs.{CONFIGS[name]}").get_config()
  config.task.update(task)
  return config


def test_each_module_with_a_spec_is_a_name():
  folder = pathlib.Path(tasks.__file__).parent
  stated = {path.stem for path in folder.glob("*.py") if re.search("^SPEC = ", path.read_text(), re.M)}
  stated |= {path.parent.name for path in folder.glob("*/task.py") if re.search("^SPEC = ", path.read_text(), re.M)}
  assert stated == set(tasks.NAMES) == set(CONFIGS)


def test_every_head_of_a_task_is_known_to_all_others():
  heads = {head for name in tasks.NAMES for head in tasks.spec(name).heads}
  assert heads == set(task_heads.HEADS)
  for head in (None, *heads):
    patterns = base.unused(*([head] if head else []), keep=True)
    left_out = {head for head in heads if any(re.search(pattern, f"{head}/kernel") for pattern in patterns)}
    assert left_out == heads - {head}
  assert any(re.search(pattern, "pooler/kernel") for pattern in base.unused())
  assert not any(re.search(pattern, "pooler/kernel") for pattern in base.unused(pooler=True))


def test_a_checkpoint_with_every_head_begins_any_task():
  flat = {f"{head}/{path}": np.zeros(shape) for head, shapes in task_heads.HEADS.items()
          for path, shape in shapes(SMALL.hidden_size, 3).items()}  # fmt: skip
  encoder = {"encoder": {"kernel": np.zeros(2)}}
  for head in task_heads.HEADS:
    params = encoder | paths.unflatten({path: leaf + 1 for path, leaf in flat.items() if path.startswith(f"{head}/")})
    loaded = encoder | paths.unflatten(flat)
    new = (task_heads.pattern(head),)
    fresh, _ = convert.fit(params, loaded, new=new, unused=base.unused(head))
    kept, _ = convert.fit(params, loaded, new=new, unused=base.unused(head, keep=True))
    assert all(leaf.min() == 1 for leaf in jax.tree.leaves(fresh[head]))
    assert all(leaf.max() == 0 for leaf in jax.tree.leaves(kept[head]))


@pytest.mark.parametrize("name", tasks.NAMES)
def test_the_config_fits_the_task(name):
  config, spec = config_of(name), tasks.spec(name)
  assert not config.best or tasks.is_metric(config.best, spec.metrics(config))
  assert not tasks.is_metric("mlm_los", spec.metrics(config))
  if spec.settings is None:
    assert set(config.task) == {"name"}
    return
  settings = base.settings_of(spec.settings, config)
  assert {"name", *(field.name for field in dataclasses.fields(settings))} == set(config.task)
  with config.unlocked():
    config.task.typo = 1
  with pytest.raises(UserError, match=rf"task.name={name} has no field 'typo'; its fields are"):
    base.settings_of(spec.settings, config)


FILES = {
  "classify": ("train.csv", "dev.csv"), "glue": ("train.tsv", "dev.tsv"), "squad": ("train.json", "dev.json"),
  "ner": ("train.conll", "dev.conll"), "choice": ("train/high/1.txt", "dev/high/2.txt"),
  "retrieve": ("train.tsv", "dev.tsv"), "summarize": ("train.jsonl", "dev.jsonl"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_task_states_the_files_that_it_reads(name, tmp_path):
  for file in (*FILES[name], "test.csv", "notes.md"):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
  config = config_of(name)
  config.data.dataset = str(tmp_path)
  assert tasks.spec(name).files(config) == sorted(tmp_path / file for file in FILES[name])
  config.data.dataset = "tfds_name"
  assert name == "ner" or tasks.spec(name).files(config) is None


@pytest.mark.parametrize("dataset", glue.TASKS)
def test_the_metrics_of_glue_are_those_of_its_table(dataset):
  config = config_of("glue", dataset=dataset)
  metrics = tasks.spec("glue").metrics(config)
  assert {"loss", *glue.TASKS[dataset].metrics} <= set(metrics)
  assert ("accuracy_mismatched" in metrics) == (dataset == "mnli")


@pytest.mark.parametrize(("name", "fields", "message"), [
  ("classify", {"kind": "clasification"}, "task.kind='clasification' is unknown; use one of classification"),
  ("classify", {"labels": "a,,b"}, "has an empty name"),
  ("classify", {"labels": "a,b,a"}, "names 'a' twice"),
  ("classify", {"labels": "1,2,1.0"}, "task.labels=1,2,1.0: 1 and 1.0 are one label in the data"),
  ("classify", {"kind": "multilabel", "labels": "true,True"}, "true and True are one label in the data"),
  ("classify", {"labels": "a"}, "task.labels=a is one label; name two"),
  ("classify", {"labels": '["a", '}, "is not a JSON list"),
  ("classify", {"labels": '["a", 1]'}, "empty name"),
  ("classify", {"kind": "regression", "labels": "a,b"}, "is for classes"),
  ("classify", {"kind": "regression", "label_smoothing": 0.1}, "task.label_smoothing=0.1 is for classification"),
  ("classify", {"class_weights": "even"}, "task.class_weights='even' is unknown; use balanced"),
  ("classify", {"label_smoothing": 1.0}, "task.label_smoothing=1.0 must be from 0 to below 1"),
  ("classify", {"label_smoothing": float("nan")}, "task.label_smoothing=nan must be"),
  ("classify", {"r_drop": -1.0}, "task.r_drop=-1.0 must be 0 or more"),
  ("classify", {"r_drop": float("inf")}, "task.r_drop=inf must be 0 or more"),
  ("classify", {"keep_head": "yes"}, "task.keep_head='yes' must be a bool"),
  ("glue", {"dataset": "sst2"}, "there is no GLUE dataset 'sst2'"),
  ("glue", {"dataset": "sts-b", "class_weights": "balanced"}, "is for classification, and this is regression"),
  ("ner", {"label_smoothing": -0.1}, "task.label_smoothing=-0.1"),
  ("retrieve", {"pooling": "max"}, "task.pooling='max' is unknown; use one of mean, cls"),
  ("retrieve", {"temperature": 0.0}, "task.temperature=0.0 must be above 0"),
  ("retrieve", {"score_range": "5,0"}, "must be a low and a higher number"),
  ("retrieve", {"score_range": "0"}, "must be two numbers"),
  ("summarize", {"sentences": 0}, "task.sentences=0 must be 1 or more"),
  ("squad", {"head": "spam"}, "task.head='spam' is unknown"),
  ("squad", {"language": "de"}, "task.language='de' is unknown"),
])  # fmt: skip
def test_wrong_settings_are_one_line(name, fields, message):
  config = config_of(name)
  values = {key: value for key, value in config.task.items() if key != "name"} | fields
  with pytest.raises(UserError, match=re.escape(message)):
    base.settings_of(tasks.spec(name).settings, ConfigDict({"task": {"name": name, **values}}))


def test_loss_weights_are_checked():
  config = config_of("pretrain")
  for weight in (-1.0, float("nan"), float("inf")):
    config.loss.mlm_weight = weight
    with pytest.raises(UserError, match=f"loss.mlm_weight={weight} must be 0 or more"):
      tasks.sketch(config)
  config.loss.mlm_weight = config.loss.sop_weight = 0.0
  with pytest.raises(UserError, match="are both 0"):
    tasks.sketch(config)


def test_names_survive_writing_and_reading():
  for names in ((), ("a",), ("a", "b"), ("a,b", "c"), ('"', "x y"), ("[a]", "b"), ("a", "[b")):
    assert base.named(base.joined(names)) == names
  assert base.named("a, b") == ("a", "b")


def test_what_a_model_answers_is_stated_once():
  predictions = tasks.predictions()
  assert set(predictions) == {"fill-mask", "classify", "tag", "answer", "choose", "embed", "summarize"}
  assert set(task_heads.CLASSES.values()) <= set(predictions)
  for prediction in predictions.values():
    parts = set().union(*prediction.parts)
    assert parts <= {*task_heads.HEADS, "pooler", "mlm", "sop"}
    assert "batch_size" in prediction.options()
  assert tasks.spec("glue").prediction is classify.PREDICTION
  assert set(tasks.scorers()) == {"glue", "squad", "ner", "choice"}


def test_unknown_names():
  with pytest.raises(UserError, match="is unknown; use one of"):
    tasks.spec("spam")
  with pytest.raises(UserError, match="cannot be planned without its data"):
    tasks.sketch(config_of("ner"))


def test_the_registry_imports_no_task():
  code = "import sys, albert_jax.tasks as t; sys.exit(any(f'albert_jax.tasks.{n}' in sys.modules for n in t.NAMES))"
  assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
