"""The share of a run's time in which it trained, preemptions included."""

import datetime

import pytest

from albert_jax.training import goodput

START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def at(seconds):
  return START + datetime.timedelta(seconds=seconds)


def line(step, seconds, stall=0.0):
  return {"step": step, "split": "train", "tokens": 50 * seconds, "tokens_per_s": 50.0, "input_stall": stall}


def test_time_between_processes_and_waits_for_batches_are_not_productive():
  card = {"started": at(0).isoformat(), "resumed": [{"step": 20, "time": at(600).isoformat()}]}
  lines = [line(10, 100), line(20, 100, stall=0.5), line(30, 80), {"step": 30, "split": "eval", "loss": 1.0}]
  run, process = goodput.measure(card, lines, at(700))
  assert run == goodput.Goodput(productive=230.0, total=700.0, starts=2)
  assert process == goodput.Goodput(productive=80.0, total=100.0, starts=1)
  text = goodput.text(run, process)
  assert text == (
    "Goodput: 80.0% of 0:01:40 went into training steps; since the run began, 32.9% of 0:11:40 in 2 starts."
  )


def test_a_run_of_one_process_has_one_share():
  run, process = goodput.measure({"started": at(0).isoformat(), "resumed": []}, [line(10, 45)], at(60))
  assert run == process
  assert goodput.text(run, process) == "Goodput: 75.0% of 0:01:00 went into training steps."


def test_a_run_without_a_line_has_a_share_of_zero():
  run, _ = goodput.measure({"started": at(0).isoformat(), "resumed": []}, [], at(0))
  assert run.share == pytest.approx(0)
