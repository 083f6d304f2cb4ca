"""A task that trains low-rank differences and its own head, and leaves the rest of the checkpoint as it is."""

import dataclasses
import re

import jax

from albert_jax import paths
from albert_jax.model import lora
from albert_jax.tasks.base import Task
from albert_jax.types import Params


def frozen(task: Task, also_trained: str = "") -> str:
  """Makes the regular expression of the parameters that stay: all but those that are new beside a checkpoint's.

  Args:
    task: made by `adapt`.
    also_trained: a regular expression of more parameters that are trained, '' for none.

  Returns:
    the pattern, for `optimizer.freeze`.
  """
  return f"^(?!.*(?:{'|'.join(_trained(task, also_trained))}))"


def adapt(task: Task, rank: int, word_rank: int, also_trained: str = "") -> Task:
  """Makes the task that trains low-rank differences.

  Args:
    task: the task as it is without them.
    rank: of those to the matrices of the layers, see model/lora.py.
    word_rank: of that to the table of words.
    also_trained: see `frozen`.

  Returns:
    the task. Its exports hold the sums W + A B, so they are read as any other's.
  """

  def init(key: jax.Array) -> Params:
    params = task.init(key)
    return {**params, "lora": lora.init(task.model, params, rank, word_rank, jax.random.fold_in(key, 1))}

  def whole(params: Params) -> Params:
    # Without the gradients of what stays, the compiler leaves out a third of the step's matrix products.
    flat = {
      path: value if any(re.search(pattern, path) for pattern in trained) else jax.lax.stop_gradient(value)
      for path, value in paths.flatten(params).items()
    }
    return lora.merged(paths.unflatten(flat))

  outputs = task.outputs
  adapted = dataclasses.replace(
    task,
    init=init,
    sums=lambda params, batch, key: task.sums(whole(params), batch, key),
    outputs=outputs and (lambda params, batch: outputs(whole(params), batch)),
    new=(*task.new, "^lora/"),
    exported=lora.merged,
  )
  trained = _trained(adapted, also_trained)
  return adapted


def _trained(task, also_trained):
  return [*task.new, *([also_trained] if also_trained else [])]
