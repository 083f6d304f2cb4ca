"""The best evaluation, also after a run was cut off."""

import json

import pytest

from albert_jax import UserError
from albert_jax.training.best import Best


@pytest.mark.parametrize(("metric", "best"), [("accuracy", 4), ("mlm_loss", 2)])
def test_higher_is_better_unless_it_is_a_loss(metric, best, tmp_path):
  best_so_far = Best(metric, 0, tmp_path, 0)
  values = [(2, 0.3), (4, 0.8), (6, 0.8), (8, 0.5)]
  improved = [step for step, value in values if best_so_far.improved(step, {metric: value})]
  assert improved[-1] == best_so_far.step == best  # Of equals the first.
  assert set(best_so_far.scores) == set(improved)


def test_nan_is_never_the_best(tmp_path):
  best_so_far = Best("f1", 0, tmp_path, 0)
  assert not best_so_far.improved(1, {"f1": float("nan")})
  assert best_so_far.improved(2, {"f1": 0.1})
  assert not best_so_far.improved(3, {"f1": float("nan")})
  assert best_so_far.step == 2


def test_it_knows_what_a_run_that_was_cut_off_had_found(tmp_path):
  lines = [{"step": step, "split": "eval", "f1": f1} for step, f1 in ((2, 0.5), (4, 0.4), (6, 0.9))]
  (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, [{"step": 2, "split": "train"}, *lines])) + "\n")
  best_so_far = Best("f1", 2, tmp_path, 4)
  assert (best_so_far.step, best_so_far.value) == (2, 0.5)
  assert not best_so_far.enough()
  assert not best_so_far.improved(6, {"f1": 0.5})
  assert best_so_far.enough()


def test_without_a_metric_nothing_is_the_best(tmp_path):
  best_so_far = Best("", 0, tmp_path, 0)
  assert not best_so_far.improved(2, {"f1": 1.0})
  assert not best_so_far.enough()
  with pytest.raises(UserError, match="'f1' is not among the held-out numbers: loss"):
    Best("f1", 0, tmp_path, 0).improved(1, {"loss": 1.0})
