"""Epochs, tokens and hours as steps; curricula as stages."""

import pytest

from albert_jax import UserError
from albert_jax.training import duration

NONE = {"seq_length": "", "batch_size": "", "num_hidden_layers": ""}


def parts(**curriculum):
  return duration.parts({**NONE, **curriculum}, batch_size=32, seq_length=512, num_hidden_layers=12)


def test_a_run_without_a_curriculum_is_one_stage():
  assert parts() == [duration.Part(0.0, 1.0, 32, 512, 12)]
  assert duration.stages(parts(), 10) == [duration.Stage(0, 10, 0, 0)]


def test_curricula_are_cut_where_any_of_them_changes():
  cut = parts(seq_length="128:0.5,256:0.9", batch_size="8:0.5,16:0.75")
  assert [(p.begin, p.end, p.batch_size, p.seq_length) for p in cut] == [
    (0.0, 0.5, 8, 128), (0.5, 0.75, 16, 256), (0.75, 0.9, 32, 256), (0.9, 1.0, 32, 512),
  ]  # fmt: skip


def test_a_larger_batch_goes_on_with_the_next_row():
  stages = duration.stages(parts(batch_size="8:0.5,16:0.75"), 20)
  assert [(s.first, s.last) for s in stages] == [(0, 10), (10, 15), (15, 20)]
  # The first row of a stage's first batch is the one after the last of the stage before.
  sizes = (8, 16, 32)
  begins = [s.first_row + s.first * sizes[s.part] for s in stages]
  assert begins == [0, 80, 160]


def test_a_part_too_short_for_a_step_is_left_out():
  assert [s.part for s in duration.stages(parts(seq_length="128:0.01"), 10)] == [1]


@pytest.mark.parametrize("text", ["128", "128:0", "128:1", "a:0.5", "128:0.9,256:0.5", "0:0.5", "128:0.5,64:0.5"])
def test_what_is_no_curriculum_is_an_error(text):
  with pytest.raises(UserError, match=r"curriculum\.seq_length=.* must be VALUE:UNTIL pairs"):
    parts(seq_length=text)


def total(curriculum=(), **limits):
  values = {"steps": 0, "epochs": 0.0, "tokens": 0.0, "hours": 0.0, "train_rows": 0, **limits}
  return duration.total_steps(parts=parts(**dict(curriculum)), **values)


def test_epochs_and_tokens_are_as_many_steps_as_they_need():
  assert total(steps=7) == 7
  assert total(epochs=1.0, train_rows=64) == 2
  assert total(epochs=3.0, train_rows=65) == 7
  assert total(epochs=0.001, train_rows=65) == 1
  assert total(tokens=32 * 512 * 10.0) == 10
  # Half of the steps have half the rows, or a quarter of the length.
  assert total({"batch_size": "16:0.5"}, epochs=3.0, train_rows=64) == 8
  assert total({"seq_length": "128:0.5"}, tokens=32 * 512 * 10.0) == 16


@pytest.mark.parametrize(
  ("limits", "words"),
  [
    ({"epochs": 1.0, "tokens": 5.0}, "epochs=1 and tokens=5 both limit"),
    ({"tokens": 1.0, "hours": 5.5}, "tokens=1 and hours=5.5 both limit"),
    ({"steps": 15, "epochs": 3.0}, "steps=15 and epochs=3 both limit"),
    ({"epochs": 1.0}, "does not know the length of an epoch"),
    ({"steps": 0}, "expected one of them above 0"),
    ({"steps": 5, "hours": -1.0}, "and the others 0"),
  ],
)
def test_a_length_that_cannot_be_is_an_error(limits, words):
  with pytest.raises(UserError, match=words):
    total(**limits)


def test_a_duration_of_the_command_line_replaces_that_of_the_config():
  assert duration.chosen({"steps": 15}) == {"epochs": 0, "tokens": 0, "hours": 0}
  assert duration.chosen({"steps": 15, "epochs": 0.0}) == {"tokens": 0, "hours": 0}
  assert duration.chosen({"epochs": 0.0}) == {}
  with pytest.raises(UserError, match="steps=15 and epochs=2 both limit the run; give one"):
    duration.chosen({"steps": 15, "epochs": 2.0})


def test_hours_are_steps_and_evaluations():
  # 100 s; a step takes 1 s in the first half of the run and 3 s in the second, an evaluation 10 s after every 20 steps.
  steps = duration.steps_in(100, parts(seq_length="128:0.5"), [1.0, 3.0], 10.0, 20)
  assert steps == 36
  assert steps * 2.0 + (steps // 20 + 1) * 10 <= 100
  with pytest.raises(UserError, match=r"give more --config\.hours"):
    duration.steps_in(5, parts(), [6.0], 0.0, 20)
