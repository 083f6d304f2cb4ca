"""The config that `evaluate` reads from a run."""

import json
import logging

import pytest

from albert_jax import UserError, evaluation
from albert_jax.__main__ import main


@pytest.fixture
def run(tmp_path):
  """Returns the folder of a run whose version had a field of the model that is gone."""
  config = {"task": {"name": "classify"}, "data": {"dataset": "x"}, "model": {"hidden_size": 8, "early_exit": True}}
  (tmp_path / "config.json").write_text(json.dumps(config))
  return tmp_path


@pytest.mark.parametrize("folder", ["", "/export", "/export/"])
def test_the_config_of_an_old_run_is_read_without_fields_that_are_gone(run, folder, caplog):
  caplog.set_level(logging.INFO, "albert_jax")
  config = evaluation.recorded_config(f"{run}{folder}")
  assert config.model.to_dict() == {"hidden_size": 8}
  assert "this version has no model.early_exit; left out" in caplog.text


def test_a_misspelt_field_on_the_command_line_is_refused(run, capsys):
  assert main(["evaluate", f"--checkpoint={run}", "--config.model.hiden_size=8"]) == 2
  assert "hiden_size" in capsys.readouterr().err


def test_a_folder_without_a_run_is_refused(tmp_path):
  with pytest.raises(UserError, match="does not belong to a run, so it has no config; add --config=FILE:VARIANT"):
    evaluation.recorded_config(tmp_path)
