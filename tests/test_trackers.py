"""Numbers for services: what is sent, and that no service can stop a run."""

import importlib.util
import pathlib
import sys

import pytest

from albert_jax import UserError
from albert_jax.training import trackers

STAND_IN = """
import json, os

class Run:
  def define_metric(self, *args, **kwargs):
    note("define_metric", args, kwargs)
  def log(self, numbers):
    note("log", numbers)
    if os.environ.get("FAILS"):
      raise ConnectionError("no network")
  def finish(self):
    note("finish")

def init(**kwargs):
  note("init", kwargs)
  return Run()

def note(*what):
  with open(os.environ["NOTES"], "a") as file:
    file.write(json.dumps(what) + "\\n")
"""
CARD = {"id": "abc", "config": {"seed": 1}}


@pytest.fixture
def wandb(tmp_path, monkeypatch):
  """Returns a stand-in for wandb that writes down how it is called; returns a function that reads that."""
  (tmp_path / "wandb.py").write_text(STAND_IN)
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
  monkeypatch.delitem(sys.modules, "wandb", raising=False)
  yield lambda: (tmp_path / "notes").read_text().splitlines()
  sys.modules.pop("wandb", None)


def test_weights_and_biases_gets_the_numbers(wandb, tmp_path):
  (tracker,) = trackers.start(trackers.find("wandb"), tmp_path / "run", CARD)
  tracker.write(3, "eval", {"loss": 0.5})
  tracker.close()
  init, metric, log, finish = wandb()
  assert '"id": "abc", "resume": "allow"' in init
  assert '"config": {"seed": 1}' in init
  assert '"step_metric": "step"' in metric
  assert log == '["log", {"step": 3, "eval/loss": 0.5}]'
  assert finish == '["finish"]'


def test_a_service_that_fails_is_left_alone(wandb, tmp_path, monkeypatch, caplog):
  (tracker,) = trackers.start(trackers.find("wandb"), tmp_path, CARD)
  monkeypatch.setenv("FAILS", "1")
  for step in range(3):
    tracker.write(step, "train", {"loss": 1.0})
  tracker.close()
  assert caplog.messages == ["Nothing more goes to wandb: ConnectionError: no network"]
  assert len(wandb()) == 4  # init, define_metric, one log, finish


def test_what_is_not_there_is_an_error(monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(UserError, match=r"pip install 'albert-jax\[wandb\]'"):
    trackers.find("wandb")
  with pytest.raises(UserError, match="'tensorbord' is unknown; use one or several of mlflow,wandb"):
    trackers.find("tensorbord")
  assert trackers.find("") == {}


@pytest.mark.skipif(not importlib.util.find_spec("mlflow"), reason="needs mlflow: the extra [mlflow]")
@pytest.mark.filterwarnings("ignore")  # Its own.
def test_mlflow_gets_the_numbers_and_goes_on_with_its_run(tmp_path, monkeypatch):
  import mlflow

  mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
  for step in (1, 2):
    (tracker,) = trackers.start(trackers.find("mlflow"), pathlib.Path("runs/one"), CARD)
    tracker.write(step, "train", {"loss": 1 / step})
    tracker.close()
  client = mlflow.MlflowClient()
  (run,) = client.search_runs([client.get_experiment_by_name("albert-jax").experiment_id])
  assert run.info.run_name == "one"
  assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "train/loss")] == [(1, 1.0), (2, 0.5)]
