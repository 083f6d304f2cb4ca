"""The learning rate at the steps where forms differ, by hand."""

import numpy as np
import pytest

from albert_jax.errors import UserError
from albert_jax.training.optimizer import OptimizerConfig
from albert_jax.training.schedule import SHAPES, peak, schedule


def rates(steps, at, batch_size=None, **fields):
  rate = schedule(OptimizerConfig(**{"learning_rate": 2.0, "warmup_steps": 10, **fields}), steps, batch_size)
  values = [rate(n) for n in at]
  assert {type(x) for x in values} == {float}
  return values


@pytest.mark.parametrize(
  ("fields", "steps", "expected"),
  [
    # The original counts decay from the start, so the rate falls when the warm-up ends; the textbook does not.
    ({}, 100, {0: 0, 5: 1, 9: 1.8, 10: 1.8, 50: 1, 75: 0.5, 100: 0, 200: 0}),
    ({"textbook": True}, 110, {0: 0, 5: 1, 10: 2, 60: 1, 110: 0, 200: 0}),
    ({"decay_power": 2.0, "warmup_steps": 0}, 10, {0: 2, 5: 0.5, 10: 0}),
    ({"final_rate": 0.1, "textbook": True}, 110, {5: 1, 10: 2, 60: 1.1, 110: 0.2, 200: 0.2}),
    ({"schedule": "cosine"}, 110, {0: 0, 5: 1, 10: 2, 35: 1 + 0.5**0.5, 60: 1, 85: 1 - 0.5**0.5, 110: 0, 200: 0}),
    ({"schedule": "cosine", "final_rate": 0.25}, 110, {5: 1, 10: 2, 60: 1.25, 110: 0.5}),
    ({"schedule": "cosine", "warmup_steps": 0}, 100, {0: 2, 50: 1, 100: 0}),
    ({"schedule": "wsd", "decay_share": 0.2}, 100, {0: 0, 5: 1, 10: 2, 50: 2, 80: 2, 90: 1, 95: 0.5, 100: 0, 120: 0}),
    ({"schedule": "wsd", "decay_share": 0.2, "final_rate": 0.1}, 100, {80: 2, 90: 1.1, 100: 0.2}),
    ({"schedule": "wsd", "decay_share": 0.2, "decay_power": 2.0}, 100, {80: 2, 90: 0.5, 100: 0}),
    ({"schedule": "wsd", "decay_share": 1e-20}, 100, {10: 2, 99: 2, 120: 0}),
    ({"schedule": "inverse_sqrt"}, 100, {0: 0, 5: 1, 10: 2, 40: 1, 90: 2 / 3, 1000: 0.2}),
    ({"schedule": "constant", "warmup_steps": -1}, 100, {0: 0, 5: 1, 10: 2}),
    ({"schedule": "inverse_sqrt", "warmup_steps": -1}, 100, {5: 1, 10: 2, 40: 1}),
    ({"schedule": "constant", "warmup_steps": -1, "rewarm_from": 100}, 200, {105: 1, 110: 2}),
    ({"schedule": "constant"}, 100, {0: 0, 5: 1, 10: 2, 99: 2, 1000: 2}),
    ({"schedule": "constant", "warmup_steps": 0}, 100, {0: 2}),
    # The same as a run of 100 steps, 1000 later.
    ({"rewarm_from": 1000}, 1100, {1000: 0, 1005: 1, 1010: 1.8, 1050: 1, 1100: 0}),
    ({"rewarm_from": 1000, "schedule": "wsd", "decay_share": 0.2}, 1100, {1005: 1, 1080: 2, 1090: 1, 1100: 0}),
    ({"rewarm_from": 1000, "schedule": "inverse_sqrt"}, 1100, {1005: 1, 1010: 2, 1040: 1}),
  ],
)
def test_the_rate_at_the_corners(fields, steps, expected):
  np.testing.assert_allclose(rates(steps, expected, **fields), list(expected.values()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SHAPES)
def test_it_never_rises_after_the_warm_up_nor_leaves_zero_to_the_peak(name):
  values = np.array(rates(100, range(130), schedule=name))
  assert (np.diff(values[10:]) <= 1e-12).all()
  assert values.min() >= 0
  assert values.max() <= 2


def test_the_peak_follows_the_batch():
  cfg = {"learning_rate": 2.0, "reference_batch": 4096}
  assert peak(OptimizerConfig(**cfg), 1024) == peak(OptimizerConfig(**cfg)) == 2.0
  assert peak(OptimizerConfig(scale_with_batch="sqrt", **cfg), 1024) == 1.0
  assert peak(OptimizerConfig(scale_with_batch="linear", **cfg), 1024) == 0.5
  assert peak(OptimizerConfig(scale_with_batch="linear", **cfg), 8192) == 4.0
  assert peak(OptimizerConfig(scale_with_batch="sqrt", reference_batch=256, learning_rate=2.0), 256) == 2.0
  values = rates(100, (5, 50), batch_size=1024, scale_with_batch="sqrt")
  np.testing.assert_allclose(values, [0.5, 0.5])


def test_a_scale_without_a_batch_size_is_an_error():
  with pytest.raises(ValueError, match="needs the batch size"):
    schedule(OptimizerConfig(scale_with_batch="sqrt"), 125_000)


@pytest.mark.parametrize(
  ("fields", "steps", "message"),
  [
    ({"warmup_steps": 100}, 100, r"warmup_steps=100 must be below steps=100; try --config\.optimizer\.warmup_steps=10"),
    ({"rewarm_from": 95}, 100, "must be below the 5 steps from optimizer.rewarm_from=95 to steps=100"),
    ({"rewarm_from": 100}, 100, "rewarm_from=100 must be a step of the run"),
    ({"schedule": "wsd", "decay_share": 0.95}, 100, r"overlap; try --config\.optimizer\.warmup_steps=2"),
    ({"schedule": "inverse_sqrt", "warmup_steps": 0}, 100, "needs a warm-up; try"),
  ],
)
def test_parts_that_do_not_fit_are_errors(fields, steps, message):
  with pytest.raises(UserError, match=message):
    rates(steps, (), **fields)


def test_a_run_that_is_not_yet_where_the_schedule_begins_is_an_error():
  with pytest.raises(UserError, match="rewarm_from=50 is ahead of this run, which is at step 49"):
    rates(100, (49,), rewarm_from=50)
