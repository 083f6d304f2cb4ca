"""The self-test works here, and fails where something is broken."""

import json

import pytest

from albert_jax.commands import doctor


@pytest.mark.slow
def test_a_machine_that_works_says_so(tmp_path, capsys):
  assert doctor.main([f"--json={tmp_path}/report.json"]) == 0
  report = json.loads((tmp_path / "report.json").read_text())
  assert list(report["self_test"]) == ["forward", "one training step", "save", "restore"]
  assert all(result.endswith(" s") for result in report["self_test"].values())
  assert sum(float(result.removesuffix(" s")) for result in report["self_test"].values()) < 60, "ten on a quiet machine"
  assert "albert-jax works on this machine." in capsys.readouterr().out
  assert report["versions"]["jax"] and "GiB" in report["machine"]["memory"]


def test_what_fails_is_named(monkeypatch, capsys):
  def broken(state, folder):
    raise OSError(28, "No space left on device", "x")

  monkeypatch.setattr(doctor, "_forward", lambda *_: None)
  monkeypatch.setattr(doctor, "_step", broken)
  assert doctor.main([]) == 1
  text = capsys.readouterr().out
  assert "FAILED: x: No space left on device" in text and "does not work here: one training step" in text
  assert "save" not in text, "no test after one that failed"


def test_a_test_is_named_before_it_runs(monkeypatch, capsys):
  seen = []
  monkeypatch.setattr(doctor, "_forward", lambda *_: seen.append(capsys.readouterr().out))
  monkeypatch.setattr(doctor, "_step", lambda *_: 1 / 0)
  doctor.main([])
  assert seen[0].endswith("  forward                ")


def test_what_to_type_is_said(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  assert doctor.missing()["Weights & Biases"] == "type: pip install 'albert-jax[wandb]'"


def test_a_platform_that_does_not_start_is_reported(monkeypatch):
  def fails(*_):
    raise RuntimeError("Unable to initialize backend 'tpu': no TPU")

  monkeypatch.setattr("jax.devices", fails)
  devices = doctor.machine()["devices"]
  assert devices.startswith("none: ") and "backend 'tpu': no TPU; type: unset JAX_PLATFORMS" in devices
