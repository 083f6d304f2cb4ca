"""How the processes of a multi-host run are joined; tests/end_to_end/test_train.py runs two of them."""

import pytest

from albert_jax.errors import UserError
from albert_jax.training import hosts


@pytest.mark.parametrize(
  ("environment", "arguments", "message"),
  [
    ({"ALBERT_JAX_PROCESSES": "abc"}, (), "ALBERT_JAX_PROCESSES='abc' must be the number of processes"),
    ({"SLURM_NTASKS": "2"}, (), "SLURM_NTASKS=2, but srun did not start this process"),
    ({}, ("nonsense", 2, 0), "--coordinator=nonsense must be HOST:PORT"),
    ({}, ("host:99999", 2, 0), "must be HOST:PORT"),
    ({}, ("127.0.0.1:29411", 1, 5), "--process=5 must be from 0 to 0"),
    ({}, ("127.0.0.1:29411", None, None), "--coordinator needs --processes=N and --process=I"),
    ({}, ("", 2, 0), "need --coordinator=HOST:PORT"),
  ],
)
def test_processes_that_make_no_sense_are_refused(environment, arguments, message, monkeypatch):
  for name in ("ALBERT_JAX_PROCESSES", "SLURM_NTASKS", "SLURM_PROCID"):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(UserError, match=message):
    hosts.join(*arguments)
