"""Weights & Biases and MLflow, each with its own extra to install."""

import importlib
import logging
import pathlib
import time
from collections.abc import Generator, Mapping
from types import ModuleType
from typing import Any

import jax

from albert_jax.errors import UserError

log = logging.getLogger(__name__)


def find(names: str) -> dict[str, ModuleType]:
  """Imports the modules of `config.log_to`, such as "wandb,mlflow".

  Raises:
    UserError: one of them is unknown or not installed.
  """
  modules = {}
  for name in filter(None, names.split(",")):
    if name not in TRACKERS:
      raise UserError(f"log_to={names!r}: {name!r} is unknown; use one or several of {','.join(sorted(TRACKERS))}")
    try:
      modules[name] = importlib.import_module(name)
    except ImportError as error:
      raise UserError(f"log_to={names!r}: {error}; install it with pip install 'albert-jax[{name}]'") from None
  return modules


def start(modules: Mapping[str, ModuleType], workdir: pathlib.Path, card: Mapping[str, Any]) -> list["Tracker"]:
  """Starts the trackers of a run, on the first host only.

  Args:
    modules: see `find`.
    workdir: the local folder of the run.
    card: see workdir.py; its id stays the same when the run resumes.
  """
  return [
    Tracker(name, TRACKERS[name](module, workdir, card["config"], card["id"])) for name, module in modules.items()
    if jax.process_index() == 0
  ]  # fmt: skip


class Tracker:
  """Sends metrics to a service. A failure is reported once and stops the tracker, not the run."""

  def __init__(self, name: str, steps: Generator[None, tuple[int, dict[str, float]], None]):
    """Starts the tracker.

    Args:
      name: that of the service.
      steps: a generator that is sent (step, {"split/name": number}) and closes when the run ends.
    """
    self.name, self._steps = name, steps
    self._try(lambda: next(steps))

  def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
    """Sends the metrics of a step."""
    self._try(lambda: self._steps.send((step, {f"{split}/{name}": float(value) for name, value in metrics.items()})))

  def close(self) -> None:
    """Ends the tracker."""
    self._try(lambda: self._steps.close())

  def _try(self, action):
    if self._steps is None:
      return
    try:
      action()
    except Exception as error:  # No failure of a service may stop the training.
      log.warning("Nothing more goes to %s: %s: %s", self.name, type(error).__name__, str(error)[:200])
      self._steps = None


def _wandb(wandb, workdir, config, run_id):
  run = wandb.init(dir=str(workdir), id=run_id, resume="allow", project="albert-jax", name=workdir.name, config=config)
  run.define_metric("*", step_metric="step")  # W&B's own step cannot decrease, but a run may roll back.
  try:
    while True:
      step, numbers = yield
      run.log({"step": step, **numbers})
  finally:
    run.finish()


def _mlflow(mlflow, workdir, config, run_id):
  client = mlflow.MlflowClient()
  name = "albert-jax"
  experiment = client.get_experiment_by_name(name)
  experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
  runs = client.search_runs([experiment_id], filter_string=f"tags.albert_jax_id = '{run_id}'")
  run = runs[0] if runs else client.create_run(
    experiment_id, run_name=workdir.name, tags={"albert_jax_id": run_id}
  )  # fmt: skip
  run_id = run.info.run_id
  client.log_dict(run_id, config, "config.json")
  try:
    while True:
      step, numbers = yield
      milliseconds = int(time.time() * 1000)
      metrics = [mlflow.entities.Metric(name, value, milliseconds, step) for name, value in numbers.items()]
      client.log_batch(run_id, metrics=metrics)
  finally:
    client.set_terminated(run_id)


TRACKERS = {"wandb": _wandb, "mlflow": _mlflow}
