"""Tasks by name. A new one is a file here and a row in this table."""

from albert_jax.errors import UserError
from albert_jax.tasks import pretrain
from albert_jax.tasks.base import Task

TASKS = {"pretrain": pretrain.make}


def make(config) -> Task:
  """The task a config names in `config.task.name`."""
  if config.task.name not in TASKS:
    raise UserError(f"task.name={config.task.name!r} is unknown; use one of {sorted(TASKS)}")
  return TASKS[config.task.name](config)
