"""After an alarm: the step where a run resumes, and the batches that it skips."""

import json
import re

import numpy as np
import pytest

from albert_jax import UserError, loop
from albert_jax.commands import common
from albert_jax.training import guard
from albert_jax.training.guard import Alarm, Guard, GuardConfig


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"window": 50}, "window=50 has no effect with guard.loss_spike=0 and guard.grad_spike=0; set loss_spike or "),
    ({"skip": 2, "give_up": 0}, "skip=2 has no effect with guard.give_up=0; set give_up above 0, or leave skip out"),
  ],
)
def test_a_setting_without_effect_is_refused(fields, message):
  with pytest.raises(UserError, match=re.escape(message)):
    GuardConfig(**fields)


class Saved:
  """Checkpoints by their steps alone."""

  def __init__(self, *steps):
    self.saved = list(steps)

  def steps(self):
    return self.saved

  def forget_after(self, step):
    self.saved = [saved for saved in self.saved if saved <= step]


def check_step(health, step, loss=1.0, grad_norm=1.0):
  health.check(step, {"loss": (np.float32(loss), 1.0)}, {"grad_norm": np.float32(grad_norm)})


def test_what_is_no_finite_number_is_an_alarm(tmp_path):
  health = Guard(GuardConfig(), tmp_path, True)
  check_step(health, 1)
  for name in ("loss", "grad_norm"):
    for value in (np.nan, np.inf):
      with pytest.raises(Alarm, match=f"{name} is not a finite number at step 2"):
        check_step(health, 2, **{name: value})


def test_a_larger_batch_of_the_same_mean_loss_is_no_spike(tmp_path):
  health = Guard(GuardConfig(loss_spike=2.5, window=4), tmp_path, True)
  for step, weight in enumerate([32.0] * 4 + [128.0, 0.0], 1):
    health.check(step, {"loss": (np.float32(0.6 * weight), weight)}, {"grad_norm": 1.0})
  with pytest.raises(Alarm, match=r"loss=1\.8 is 3\.0 times its median of 4 steps at step 7"):
    health.check(7, {"loss": (np.float32(1.8 * 8), 8.0)}, {"grad_norm": 1.0})


def test_a_spike_is_an_alarm_once_there_is_a_median(tmp_path):
  health = Guard(GuardConfig(loss_spike=3.0, grad_spike=10.0, window=4), tmp_path, True)
  check_step(health, 1, loss=100)  # Not before the window is full.
  for step in range(2, 6):
    check_step(health, step, loss=2 + step / 10)
  check_step(health, 6, loss=7.0)
  with pytest.raises(Alarm, match=r"loss=9 is 3\.\d times its median of 4 steps at step 7"):
    check_step(health, 7, loss=9)
  with pytest.raises(Alarm, match=r"grad_norm=11 is 11\.0 times"):
    check_step(health, 7, grad_norm=11)


def test_a_run_that_goes_on_remembers_the_median(tmp_path):
  cfg = GuardConfig(loss_spike=3.0, window=4)
  first, second = Guard(cfg, tmp_path, True), Guard(cfg, tmp_path, True)
  for step in range(1, 5):
    check_step(first, step, loss=0.1 + 0.2 * step)
  second.restore_history(first.history())
  assert second.history() == first.history()
  with pytest.raises(Alarm):
    check_step(second, 5, loss=5)


def test_it_goes_back_to_the_newest_and_leaves_the_batch_out(tmp_path):
  health, saved = Guard(GuardConfig(), tmp_path, True), Saved(5, 10)
  health.roll_back(Alarm(13, "bad"), saved)
  assert saved.saved == [5, 10]
  assert health.skipped == {12}  # Batches are counted from 0.
  assert Guard(GuardConfig(), tmp_path, False).alarms == health.alarms
  assert Guard(GuardConfig(), tmp_path, True).alarms == []  # Another run in the same folder.
  assert not (tmp_path / "guard.json").exists()


def test_after_a_second_alarm_it_goes_further_back_and_leaves_more_out(tmp_path, caplog):
  health, saved = Guard(GuardConfig(give_up=3), tmp_path, True), Saved(4, 8)
  health.roll_back(Alarm(10, "bad"), saved)
  assert health.skipped == {9}
  health.roll_back(Alarm(10, "bad"), saved)  # Its batch is number 10 now; 8 is what came before.
  assert saved.saved == [4]
  assert health.skipped == {8, 9, 10}
  saved.saved = [4, 8]
  health.roll_back(Alarm(9, "bad"), saved)  # Step 9 has batch 11 now; steps 5 to 8 have batches 4 to 7.
  assert saved.saved == [4]
  assert health.skipped == {5, 6, 7, 8, 9, 10, 11}
  assert [alarm["times"] for alarm in health.alarms] == [1, 2, 3]
  saved.saved = [4, 8]
  with pytest.raises(FloatingPointError, match=r"bad at step 9 again, after 3 rollbacks; the checkpoint of step 4 is"):
    health.roll_back(Alarm(9, "bad"), saved)
  assert saved.saved == [4, 8]  # Giving up takes nothing away.
  assert "resuming from step 4 without batch 8, 10 (alarm 2 of 3 since the last new checkpoint)" in caplog.text


def test_after_an_alarm_at_another_step_it_goes_back_as_at_first(tmp_path):
  health, saved = Guard(GuardConfig(), tmp_path, True), Saved(4, 8)
  for step in (10, 11, 12):
    health.roll_back(Alarm(step, "bad"), saved)
  assert saved.saved == [4, 8]
  assert health.skipped == {9, 11, 13}  # Each time the batch of the alarm's step alone.
  with pytest.raises(FloatingPointError, match="after 3 rollbacks"):
    health.roll_back(Alarm(13, "bad"), saved)


def test_past_the_place_it_counts_anew(tmp_path):
  health, saved = Guard(GuardConfig(give_up=1), tmp_path, True), Saved(5)
  health.roll_back(Alarm(7, "bad"), saved)
  saved.saved = [5, 10]
  health.roll_back(Alarm(12, "bad"), saved)
  assert saved.saved == [5, 10]
  assert [alarm["alarms"] for alarm in health.alarms] == [1, 1]


def test_without_a_checkpoint_it_begins_again(tmp_path):
  health = Guard(GuardConfig(), tmp_path, True)
  health.roll_back(Alarm(3, "bad"), Saved())
  assert health.alarms[0]["restored"] == 0
  assert health.skipped == {2}
  with pytest.raises(FloatingPointError, match="there is no checkpoint yet"):
    Guard(GuardConfig(give_up=0), tmp_path, True).roll_back(Alarm(3, "bad"), Saved())


def test_the_learning_rate_is_cut_from_there_on(tmp_path):
  health = Guard(GuardConfig(cut_rate=0.5), tmp_path, True)
  health.roll_back(Alarm(7, "bad"), Saved(5))
  health.roll_back(Alarm(17, "bad"), Saved(5, 15))
  assert [health.rate(step) for step in (5, 6, 15, 16)] == [1.0, 0.5, 0.5, 0.25]
  assert health.numbers() == {"alarm_step": 17, "skipped_batches": 2, "rate_factor": 0.25}


def test_batches_left_out_move_the_later_ones_up():
  skipped = {2, 3, 6}
  numbers = [guard.batch_number(step, skipped) for step in range(6)]
  assert numbers == [0, 1, 4, 5, 7, 8]
  assert guard.batch_number(5, set()) == 5


@pytest.mark.parametrize(
  "values",
  [
    {"give_up": -1},
    {"skip": 0},
    {"window": 0},
    {"window": 10**20},
    {"cut_rate": 0.0},
    {"cut_rate": 2.0},
    {"loss_spike": 0.5},
  ],
)
def test_a_guard_that_cannot_be_is_an_error(values):
  with pytest.raises(UserError, match=rf"guard.*{next(iter(values))}"):
    GuardConfig(**values)


BASELINES = {
  "mlm_loss": (6.0, "token frequencies alone"),
  "mlm_accuracy": (0.06, "always the most frequent token"),
  "sop_accuracy": (0.5, "guessing"),
}


def test_a_run_that_learned_nothing_is_told_what_to_try():
  stuck = {"mlm_loss": 6.05, "mlm_accuracy": 0.061, "sop_accuracy": 0.503, "other": 1.0}
  text = guard.advice(stuck, BASELINES, 2000, 1.5e-4, is_finetuning=False)
  assert "sop_accuracy 0.503 (guessing: 0.500)" in text
  assert "--config.optimizer.learning_rate=0.00015 in a new --workdir" in text
  text = guard.advice({"accuracy": 0.53}, {"accuracy": (0.527, "the majority class")}, 200, 1e-5, is_finetuning=True)
  assert "degenerate run" in text
  assert "--config.seed" in text


def test_a_short_run_is_told_that_it_is_too_early():
  stuck = {"mlm_loss": 6.05, "mlm_accuracy": 0.061, "sop_accuracy": 0.503}
  for step, is_finetuning in ((200, False), (50, True)):
    text = guard.advice(stuck, BASELINES, step, 1e-4, is_finetuning=is_finetuning)
    assert f"After {step} steps it is too early to tell" in text
    assert "learning_rate" not in text


@pytest.mark.parametrize(("step", "start"), [(50, "After 50 steps it is too early"), (200, "No held-out metric")])
def test_a_small_model_is_told_to_take_another_optimizer(step, start):
  flags = "--config.optimizer.name=muon"
  text = guard.advice({"accuracy": 0.5}, {"accuracy": (0.5, "guessing")}, step, 1e-5, True, flags)
  assert text.startswith(start)
  assert flags in text and "larger models" in text and "in a new --workdir" in text and "1e-05" not in text


def test_the_optimizer_of_small_models_is_suggested_where_it_is_not_used(caplog):
  baselines = {"accuracy": (0.5, "always the most frequent label")}
  advice = {}
  for name, width in (("classify:base", 128), ("classify:tiny", 128), ("classify:base", 768)):
    config = common.load_config(name)
    config.update({"init_from": "runs/mine", "steps": 38, "model": {"hidden_size": width}})
    caplog.clear()
    assert loop._advise(config, 38, {"accuracy": 0.5}, baselines)
    advice[name, width] = caplog.text
  flags = "--config.optimizer.name=muon --config.optimizer.learning_rate=0.003 --config.optimizer.b1=0.95"
  assert [flags in text for text in advice.values()] == [True, False, False]


def test_the_advice_agrees_with_the_numbers_beside_it():
  assert not guard.advice({"rouge1": 0.422}, {"rouge1": (0.406, "the first sentences")}, 200, 1e-5, is_finetuning=True)


@pytest.mark.parametrize("better", [{"mlm_loss": 5.5}, {"mlm_accuracy": 0.1}, {"sop_accuracy": 0.6}])
def test_a_run_that_learned_something_is_not(better):
  stuck = {"mlm_loss": 6.05, "mlm_accuracy": 0.061, "sop_accuracy": 0.503}
  assert not guard.advice({**stuck, **better}, BASELINES, 2000, 1e-4, is_finetuning=False)
  assert not guard.advice({}, BASELINES, 2000, 1e-4, is_finetuning=False)


def test_what_is_written_is_json(tmp_path):
  health = Guard(GuardConfig(), tmp_path, True)
  with pytest.raises(Alarm) as raised:
    check_step(health, 3, loss=np.nan)
  health.roll_back(raised.value, Saved())
  (alarm,) = json.loads((tmp_path / "guard.json").read_text())
  assert alarm == {
    "step": 3,
    "why": "loss is not a finite number",
    "skipped": [2],
    "restored": 0,
    "alarms": 1,
    "times": 1,
  }


def test_a_damaged_note_falls_back_on_the_copy_in_the_checkpoint(tmp_path, caplog):
  health = Guard(GuardConfig(loss_spike=3.0, window=4), tmp_path, True)
  check_steps(health, (1, 2))
  health.roll_back(Alarm(3, "bad"), Saved(2))
  note = health.history()
  for damage in (b"", b"[" * 100_000, b"\0\0\0", b"{}", b"[1]", b"[{}]", b'[{"step": 3, "skipped": "2"}]'):
    (tmp_path / "guard.json").write_bytes(damage)
    again = Guard(GuardConfig(loss_spike=3.0, window=4), tmp_path, False)
    again.restore_history(note)
    assert (again.skipped, again.history()) == (health.skipped, note)
    assert "guard.json is damaged" in caplog.text
    for other in ("", '{"loss": "x"}', '{"grad_norm": ["x"]}', '{"alarms": [{}]}'):
      caplog.clear()
      again.restore_history(other)
      assert "the running medians begin anew" in caplog.text
    caplog.clear()


def check_steps(health, steps):
  for step in steps:
    check_step(health, step)
