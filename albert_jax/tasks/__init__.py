"""Tasks by name. A new one is a file here and a row in this table."""

import copy
import importlib

from albert_jax import files
from albert_jax.data import datasets
from albert_jax.errors import UserError
from albert_jax.model import STRUCTURE
from albert_jax.tasks.base import Sketch, Task, joined

__all__ = ["STRUCTURE", "TASKS", "Task", "joined", "make"]

# name: the file whose `make` builds it
TASKS = {
  "pretrain": "pretrain", "classify": "classify", "glue": "glue", "choice": "choice", "ner": "ner", "squad": "squad",
  "summarize": "summarize", "retrieve": "retrieve", "plbert": "plbert",
}  # fmt: skip


def sketch(config) -> Sketch:
  """The train step of a pre-training config without its data. Raises: UserError for other tasks."""
  tasks = ("pretrain", "plbert")
  if config.task.name not in tasks:
    raise UserError(f"task.name={config.task.name!r} cannot be planned without its data; use one of {list(tasks)}")
  return importlib.import_module(f"albert_jax.tasks.{TASKS[config.task.name]}").sketch(config)


def make(config, vocabulary=None, first_row=0) -> Task:
  """The task a config names in `config.task.name`.

  Args: vocabulary: the Tokenizer of the checkpoint to begin with, where the config names none itself. first_row: how
    many rows of the training data to pass over, see data/pretraining/batching.py.
  """
  if config.task.name not in TASKS:
    raise UserError(f"task.name={config.task.name!r} is unknown; use one of {sorted(TASKS)}")
  if files.is_url(config.data.dataset):  # Fetched now, so that worker processes need not know of it.
    config = copy.deepcopy(config).unlock()
    config.data.dataset = datasets.here(config.data.dataset)
  return importlib.import_module(f"albert_jax.tasks.{TASKS[config.task.name]}").make(config, vocabulary, first_row)
