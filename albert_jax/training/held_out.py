"""One pass over a held-out split: sums on the device, ratios and scores on the host."""

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils

from albert_jax.training import sharding
from albert_jax.training.writer import ratios


def make_eval_step(sums: Callable, outputs: Callable | None = None) -> Callable:
  """Compiles the evaluation of one batch.

  Args:
    sums: (params, batch, None) -> {metric: (total, weight)}, see tasks.Task.
    outputs: (params, batch) -> {name: array [B, ...]}, for metrics that are not ratios of sums; None if there are none.

  Returns:
    (params, batch) -> ({metric: (total, weight)}, outputs with the batch's "row").
  """

  def eval_step(params, batch):
    row_outputs = {} if outputs is None else {"row": batch["row"], **outputs(params, batch)}
    return sums(params, batch, None), row_outputs

  return jax.jit(eval_step)


def evaluate(
  eval_step: Callable, batches: Iterable, params: dict, mesh: jax.sharding.Mesh, score: Callable | None = None
) -> tuple[dict[str, float], dict[str, bytes]]:
  """Evaluates one pass over a split; padded rows weigh nothing, no row counts twice.

  Args:
    eval_step: see `make_eval_step`.
    batches: this host's rows of each batch.
    params: the parameters to evaluate.
    mesh: where they are.
    score: {name: list of arrays, one a row} -> ({metric: number}, {file name: bytes}), see tasks.Task.

  Returns:
    ({metric: value}, {file name: the predictions as bytes, in the format the task's community uses}).
  """
  sums, collected = None, []
  for batch in batches:
    new, outputs = eval_step(params, sharding.global_batch(mesh, batch))
    sums = new if sums is None else _add(sums, new)
    collected.append(outputs)
  numbers, files = ratios(jax.device_get(sums)), {}
  if score is not None:
    # Taken from the device at the end: until then it never waits for the host.
    scores, files = score(_by_row([_on_host(outputs) for outputs in collected]))
    numbers |= scores
  return numbers, files


@jax.jit
def _add(a, b):
  return jax.tree.map(lambda x, y: x + y, a, b)


def _on_host(outputs):
  """Returns all rows of a batch, from all hosts."""
  return multihost_utils.process_allgather(outputs, tiled=True) if jax.process_count() > 1 else jax.device_get(outputs)


def _by_row(collected) -> dict[str, list]:
  """Outputs of batches as {name: list of one array a row}, in the split's order, without padding rows."""
  rows = np.concatenate([outputs["row"] for outputs in collected])
  order = [i for i in np.argsort(rows, kind="stable") if rows[i] >= 0]
  lists = {name: [x for outputs in collected for x in outputs[name]] for name in collected[0] if name != "row"}
  return {name: [values[i] for i in order] for name, values in lists.items()}
