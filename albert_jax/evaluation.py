"""The numbers of a split: sums on the device, ratios on the host."""

import jax
import numpy as np
from jax.experimental import multihost_utils

from albert_jax import convert, files, tasks
from albert_jax.errors import UserError
from albert_jax.training import sharding
from albert_jax.training.writer import ratios


def make_eval_step(task):
  """(params, batch) -> ({"name": (total, weight)}, outputs of the rows, {} for most), compiled."""

  def eval_step(params, batch):
    outputs = {} if task.outputs is None else {"row": batch["row"], **task.outputs(params, batch)}
    return task.sums(params, batch, None), outputs

  return jax.jit(eval_step)


def evaluate(task, eval_step, params, mesh):
  """One pass over the task's held-out split; padded rows weigh nothing, no row counts twice.

  Returns: ({"name": value}, {file name: bytes of the answers as the task's community writes them}).
  """
  sums, collected = None, []
  for batch in task.eval_batches(jax.process_index(), jax.process_count()):
    new, outputs = eval_step(params, sharding.global_batch(mesh, batch))
    sums = new if sums is None else _add(sums, new)
    collected.append(outputs)
  numbers, answers = ratios(jax.device_get(sums)), {}
  if task.score is not None:
    # Taken from the device at the end: until then it never waits for the host.
    scores, answers = task.score(_by_row([_on_host(outputs) for outputs in collected]))
    numbers |= scores
  return numbers, answers


@jax.jit
def _add(a, b):
  return jax.tree.map(lambda x, y: x + y, a, b)


def _on_host(outputs):
  """All rows of a batch, wherever they are."""
  return multihost_utils.process_allgather(outputs, tiled=True) if jax.process_count() > 1 else jax.device_get(outputs)


def _by_row(collected) -> dict:
  """Outputs of batches as {name: list of one array a row}, in the split's order, without the rows that fill up."""
  rows = np.concatenate([outputs["row"] for outputs in collected])
  order = [i for i in np.argsort(rows, kind="stable") if rows[i] >= 0]
  lists = {name: [x for outputs in collected for x in outputs[name]] for name in collected[0] if name != "row"}
  return {name: [values[i] for i in order] for name, values in lists.items()}


def with_structure(config, path):
  """Sets the model's shape in a config to that of the checkpoint at `path`; how to compute stays the config's."""
  cfg, params = convert.load(path)
  with config.unlocked():
    for name in tasks.STRUCTURE:
      config.model[name] = getattr(cfg, name)
  return params


def for_checkpoint(config, path):
  """The task of a config with the shape, the vocabulary and the labels of a checkpoint: (Task, params).

  Raises: UserError where the checkpoint is of another task, or has other labels.
  """
  params, said, vocabulary = with_structure(config, path), convert.about(path), None
  if config.init_structure:  # Fine-tuning; in pre-training the vocabulary is the dataset's.
    vocabulary = convert.load_tokenizer(path, optional=bool(config.data.spm))
    with config.unlocked():
      config.epochs = 0.0  # So that no task reads its training data to count it,
      if said.get("labels") and "labels" in config.task and not config.task.labels:  # or to find its labels.
        config.task.labels = tasks.joined(said["labels"])
  task = tasks.make(config, vocabulary)
  same_task(task, path)
  params, _ = convert.fit(jax.eval_shape(task.init, jax.random.key(0)), params, unused=task.unused)
  return task, params


def same_task(task, path):
  """Raises: UserError where the checkpoint at `path` says that its head is of another task, or means other labels."""
  here, there = task.about.get("albert_jax_task", {}), convert.about(path)
  if there.get("name") == "fill-mask":  # The heads of pre-training are nobody else's.
    return
  for what in ("name", "labels"):
    if what in here and there.get(what, here[what]) != here[what]:
      raise UserError(
        f"{path} is of another task: its {what} is {there[what]!r}, that of the config {here[what]!r}; give the config "
        "and the data it was trained with"
      )


def write_files(folder, contents):
  """Writes {file name: bytes} into a folder, each file whole or not at all."""
  for name, content in contents.items():
    files.write(folder / name, content)
