"""Tasks by name. A new one is a file here with a `SPEC`, and its name in `NAMES`."""

import copy
import dataclasses
import fnmatch
import functools
import importlib
from collections.abc import Callable

from ml_collections import ConfigDict

from albert_jax import files
from albert_jax.data import datasets
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.model import STRUCTURE
from albert_jax.tasks.base import Prediction, Sketch, Spec, Task, joined

__all__ = [
  "NAMES",
  "STRUCTURE",
  "Prediction",
  "Sketch",
  "Spec",
  "Task",
  "is_metric",
  "joined",
  "make",
  "predictions",
  "scorers",
  "sketch",
  "spec",
]

# What `config.task.name` may be: the modules of this package that have a SPEC. A module is imported when it is needed.
NAMES = ("pretrain", "classify", "glue", "squad", "ner", "choice", "retrieve", "summarize", "plbert")


def spec(name: str) -> Spec:
  """Finds a kind of task.

  Args:
    name: one of NAMES.

  Returns:
    the SPEC of its module.

  Raises:
    UserError: there is none of that name.
  """
  if name not in NAMES:
    raise UserError(f"task.name={name!r} is unknown; use one of {sorted(NAMES)}")
  return importlib.import_module(f"albert_jax.tasks.{name}").SPEC


def make(config: ConfigDict, vocabulary: Tokenizer | None = None, first_row: int = 0) -> Task:
  """Makes the task that a config names in `config.task.name`.

  Args:
    config: the whole config.
    vocabulary: the Tokenizer of the checkpoint to begin with, where the config names none itself.
    first_row: how many rows of the training data to pass over, see data/pretraining/batching.py.

  Returns:
    the task.

  Raises:
    UserError: the config or its data are not what the task expects.
  """
  kind = spec(config.task.name)
  if files.is_url(config.data.dataset):  # Fetched now, so that worker processes need not know of it.
    config = copy.deepcopy(config).unlock()
    config.data.dataset = datasets.local_copies(config.data.dataset)
  task = kind.make(config, vocabulary, first_row)
  return dataclasses.replace(
    task, metrics=task.metrics or kind.metrics(config), files=functools.partial(kind.files, config)
  )  # fmt: skip


def sketch(config: ConfigDict) -> Sketch:
  """Makes the train step of a pre-training config without its data.

  Args:
    config: the whole config.

  Returns:
    what the step computes, and of which arrays.

  Raises:
    UserError: the shapes of this kind of task depend on its data.
  """
  make_sketch = spec(config.task.name).sketch
  if make_sketch is None:
    able = [name for name in NAMES if spec(name).sketch]
    raise UserError(f"task.name={config.task.name!r} cannot be planned without its data; use one of {able}")
  return make_sketch(config)


def is_metric(name: str, metrics: tuple[str, ...]) -> bool:
  """Returns whether a held-out number may have a name, by the shell patterns `Task.metrics`."""
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in metrics)


@functools.cache
def predictions() -> dict[str, Prediction]:
  """Returns {name: Prediction} of all tasks; imports them all."""
  kinds = [spec(name).prediction for name in NAMES]
  return {kind.name: kind for kind in kinds if kind is not None}


@functools.cache
def scorers() -> dict[str, Callable[..., dict[str, float]]]:
  """Returns {task: its function that scores answers made elsewhere}; imports all tasks."""
  functions = {name: spec(name).score_files for name in NAMES}
  return {name: function for name, function in functions.items() if function is not None}
