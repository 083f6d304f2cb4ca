"""Evaluates a checkpoint on a config's task, with the checkpoint's shape, vocabulary and labels."""

import dataclasses
import logging
import pathlib
from collections.abc import Container

import jax
from ml_collections import ConfigDict

from albert_jax import convert, files, model, run, strict_json, tasks
from albert_jax.errors import UserError
from albert_jax.training import held_out, sharding

log = logging.getLogger(__name__)


def evaluate(
  config: ConfigDict, checkpoint: str, out: str | pathlib.Path | None = None, *, overrides: Container[str] = ()
) -> dict[str, float]:
  """Computes the held-out metrics of a checkpoint.

  Args:
    config: names the task, the data and the split; the model's shape is the checkpoint's.
    checkpoint: a checkpoint of any kind, see `albert_jax.load`.
    out: a folder for the predictions, in the standard format of the task; None writes none.
    overrides: the fields that are not the run's own, whose data.quotes may be for the files that it was trained on.

  Returns:
    {metric: value}.

  Raises:
    UserError: the checkpoint is of another task, or the data does not fit it, or there are no labels and no `out`.
  """
  task, params = for_checkpoint(config, checkpoint)
  if "data.quotes" in overrides:
    run.check_unread(config, task.files())
  if not task.has_labels:
    unlabelled = f"data.validation_split={config.data.validation_split!r} has no labels, so there are no metrics"
    if out is None:
      raise UserError(f"{unlabelled}; give a split with labels, or --out=DIR for the answers")
    log.warning("%s; the answers are in %s", unlabelled, out)
  mesh = sharding.make_mesh(sharding.MeshConfig(**config.mesh), config.batch_size)
  with jax.set_mesh(mesh):
    params = jax.device_put(params, sharding.shardings(mesh, params))
    eval_step = held_out.make_eval_step(task.sums, task.outputs)
    batches = task.eval_batches(jax.process_index(), jax.process_count())
    metrics, files = held_out.evaluate(eval_step, batches, params, mesh, task.score)
  if out is not None:
    run.write_files(pathlib.Path(out), files)
  return metrics


def recorded_config(checkpoint: str) -> ConfigDict:
  """Reads the config of the run that made a checkpoint.

  Args:
    checkpoint: the folder of a run, or its export.

  Raises:
    UserError: the checkpoint does not belong to a run.
  """
  folder = str(checkpoint).rstrip("/").removesuffix("/export")
  path = f"{folder}/config.json"
  if files.exists(path):
    config = strict_json.loads(files.read(path), path, dict)
    if {"task", "data", "model"} <= config.keys():
      # A run of an older version stays readable: a field that is gone changed only the training, as the shape is the
      # checkpoint's. A wrong name on the command line is refused, because the config has no such field.
      names = {field.name for field in dataclasses.fields(model.AlbertConfig)}
      if unknown := sorted(config["model"].keys() - names):
        log.info("%s: this version has no %s; left out", path, ", ".join(f"model.{name}" for name in unknown))
      config["model"] = {name: value for name, value in config["model"].items() if name in names}
      return ConfigDict(config)
  raise UserError(
    f"--checkpoint={checkpoint} does not belong to a run, so it has no config; add --config=FILE:VARIANT and "
    "--config.data.dataset=DATA"
  )


def for_checkpoint(config: ConfigDict, path: str) -> tuple[tasks.Task, dict]:
  """Makes the task of a config with the shape, the vocabulary and the labels of a checkpoint.

  Returns:
    (the task, the checkpoint's parameters).

  Raises:
    UserError: the checkpoint is of another task, or has other labels.
  """
  config = config.copy_and_resolve_references().unlock()
  params, about, vocabulary = run.take_structure(config, path), convert.about(path), None
  if config.init_structure:  # Fine-tuning; in pre-training the vocabulary is the dataset's.
    vocabulary = convert.load_tokenizer(path, optional=bool(config.data.spm))
    config.epochs = 0.0  # So that no task reads its training data to count it,
    if about.get("labels") and "labels" in config.task and not config.task.labels:  # or to find its labels.
      config.task.labels = tasks.joined(about["labels"])
  task = tasks.make(config, vocabulary)
  run.check_same_task(task, path)
  params, _ = convert.fit(jax.eval_shape(task.init, jax.random.key(0)), params, unused=task.unused)
  return task, params
