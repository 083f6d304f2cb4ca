"""The loop in one process, on made-up batches: what is skipped, resumed, kept, ended early and written down."""

import dataclasses
import functools
import json
import logging
import pathlib
import shutil
import types

import jax
import made_up
import numpy as np
import pytest
from ml_collections import ConfigDict

import albert_jax
from albert_jax import loop, model, paths, run, tasks
from albert_jax.commands import common
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.tasks import pretrain
from albert_jax.training.writer import read

pytestmark = pytest.mark.slow
CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "pretrain.py"
TIMES = ("tokens_per_s", "input_stall", "mfu", "memory_gib")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  return Tokenizer(made_up.vocabulary(tmp_path_factory.mktemp("vocabulary"), 200))


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
  """Keeps every compiled program: most of these runs compile the same small ones, and that is most of their time."""
  name = "jax_persistent_cache_min_compile_time_secs"
  before = getattr(jax.config, name)
  jax.config.update(name, 0)
  yield
  jax.config.update(name, before)


def batch(number, rows, length, slots=3):
  """Global batch `number`: a function of it and of nothing else."""
  rng = np.random.default_rng(number)
  return {
    "input_ids": rng.integers(5, 200, (rows, length)).astype(np.int32),
    "attention_mask": np.ones((rows, length), np.int32),
    "token_type_ids": np.zeros((rows, length), np.int32),
    "mlm_positions": rng.integers(0, 4, (rows, slots)).astype(np.int32),
    "mlm_labels": rng.integers(5, 200, (rows, slots)).astype(np.int32),
    "mlm_weights": np.ones((rows, slots), np.float32),
    "sop_label": rng.integers(0, 2, rows).astype(np.int32),
    "sop_weight": np.ones(rows, np.float32),
  }


@pytest.fixture
def go(vocabulary, tmp_path, monkeypatch, caplog, quick_runs):
  """Returns a function that trains a tiny model in a folder: go("name", steps=…) -> its metrics, see `numbers`."""
  bad_batches, absent, served = set(), [], []

  def make(config, _vocabulary=None, first_row=0):
    cfg = model.AlbertConfig(**config.model)
    rows, length = config.batch_size, config.data.seq_length

    def train_batches(start, host, hosts):
      number = start
      while True:
        shown = number + sum(gone <= number for gone in absent)  # The data of a run that never had these.
        served.append((first_row + number * rows, rows, length))
        made = batch(shown, rows, length)
        if shown in bad_batches:
          made["mlm_weights"][0, 0] = np.nan
        yield made
        number += 1

    return tasks.Task(
      model=cfg, init=functools.partial(model.init, cfg), sums=functools.partial(pretrain.sums, cfg),
      terms=functools.partial(pretrain.terms, 1.0, 1.0), train_batches=train_batches,
      eval_batches=lambda host, hosts: iter([batch(-1 % 2**32, rows, length)]),
      baselines={"mlm_loss": (5.3, "frequencies"), "sop_accuracy": (0.5, "guessing")}, vocabulary=vocabulary,
      metrics=(*pretrain.METRICS, "score"), train_rows=40,
    )  # fmt: skip

  monkeypatch.setattr(tasks, "make", make)
  caplog.set_level(logging.INFO, "albert_jax")

  def go(name, profile=None, **overrides):
    config = common.load_config(f"{CONFIG}:tiny")
    values = {
      "steps": 8, "batch_size": 8, "log_every": 1, "eval_every": 4, "checkpoint_every": 2, "data.seq_length": 8,
      "data.dataset": "", "optimizer.warmup_steps": 0,
      "model.vocab_size": 200, "model.hidden_size": 8, "model.embedding_size": 4, "model.num_hidden_layers": 1,
      "model.num_attention_heads": 2, "model.intermediate_size": 8, "model.max_position_embeddings": 16,
      **{key.replace("__", "."): value for key, value in overrides.items()},
    }  # fmt: skip
    config.update_from_flattened_dict(values)
    if config.epochs or config.tokens or config.hours:
      config.steps = 0
    served.clear()
    loop.train(config, tmp_path / name, profile)
    return numbers(tmp_path / name)

  go.bad_batches, go.absent, go.served, go.folder = bad_batches, absent, served, tmp_path
  return go


def numbers(folder):
  """Returns {(step, split): metrics} of a run, without how long it took."""
  lines = read(folder)
  return {
    (line["step"], line["split"]): {k: v for k, v in line.items() if k not in ("step", "split", *TIMES)}
    for line in lines
  }


def only(lines, split):
  return {key: value for key, value in lines.items() if key[1] == split}


def same_weights(a, b):
  a, b = (paths.flatten(albert_jax.load(folder / "export")[1]) for folder in (a, b))
  for path in a:
    np.testing.assert_array_equal(a[path], b[path], err_msg=path)


def forget_after(folder, step):
  """What a run killed before the checkpoint after `step` would have left."""
  for checkpoint in (folder / "checkpoints").iterdir():
    if int(checkpoint.name) > step:
      shutil.rmtree(checkpoint)


def test_two_runs_of_one_config_are_the_same_bits(go):
  assert go("one") == go("two")
  same_weights(go.folder / "one", go.folder / "two")


def test_a_bad_batch_is_left_out_and_the_rest_is_as_if_it_had_never_been(go, caplog):
  go.bad_batches |= {4, 6}
  lines = go("guarded")
  output = caplog.text
  assert "is not a finite number at step 5: resuming from step 4 without batch 4 (alarm 1 of 3 since" in output
  assert "is not a finite number at step 6: resuming from step 4 without batch 6 (alarm 2 of 3 since" in output
  alarms = json.loads((go.folder / "guarded" / "guard.json").read_text())
  assert {number for alarm in alarms for number in alarm["skipped"]} == {4, 6}
  assert lines[4, "guard"]["skipped_batches"] >= 1
  go.bad_batches.clear()
  go.absent += [4, 5]  # Number 5 in a stream without 4 is 6.
  expected = go("without")
  assert {key: value for key, value in lines.items() if key[1] != "guard"} == expected
  same_weights(go.folder / "guarded", go.folder / "without")


def test_a_run_that_was_killed_makes_the_same_choice(go):
  go.bad_batches.add(4)
  whole = go("whole")
  shutil.copytree(go.folder / "whole", go.folder / "killed")
  for step in (4, 6):
    forget_after(go.folder / "killed", step)
  assert go("killed") == whole
  assert all(row != 4 * 8 for row, *_ in go.served)
  same_weights(go.folder / "killed", go.folder / "whole")


def test_after_an_alarm_before_the_first_checkpoint_it_begins_again(go):
  go.bad_batches.add(0)
  lines = go("guarded", steps=3, eval_every=3, checkpoint_every=3)
  go.bad_batches.clear()
  go.absent.append(0)
  expected = go("without", steps=3, eval_every=3, checkpoint_every=3)
  assert only(lines, "train") == only(expected, "train")


def test_after_too_many_alarms_it_gives_up_and_says_so(go):
  go.bad_batches |= set(range(3, 100))
  with pytest.raises(FloatingPointError, match=r"at step \d again, after 3 rollbacks; the checkpoint of step 2 is"):
    go("run")
  assert max(int(path.name) for path in (go.folder / "run" / "checkpoints").iterdir()) == 2


def test_without_the_weights_to_start_from_a_run_gets_no_folder(go, tmp_path):
  with pytest.raises(UserError, match=r"nothing at '.*nowhere'"):
    go("run", init_from=str(tmp_path / "nowhere"))
  assert not (tmp_path / "run").exists()


def test_a_stopped_run_can_be_ended_at_its_newest_checkpoint_and_is_evaluated_there(go):
  expected = go("whole", steps=6)  # The last step is evaluated, whatever eval_every is.
  go("stopped")
  forget_after(go.folder / "stopped", 6)
  shutil.rmtree(go.folder / "stopped/export")
  lines = go("stopped", steps=6)
  assert not go.served and lines[6, "eval"].keys() == expected[6, "eval"].keys()
  assert (go.folder / "stopped/export").is_dir()
  go("stopped", steps=6)
  assert [line["step"] for line in read(go.folder / "stopped") if line["split"] == "eval"] == [4, 6]


def test_weights_of_another_shape_or_for_other_pieces_are_refused(go, tmp_path):
  go("first", steps=1)
  export = tmp_path / "first/export"
  with pytest.raises(UserError, match=r"model of hidden_size=8, and this .* hidden_size=16; .*init_structure=True$"):
    go("wide", init_from=str(export), model__hidden_size=16)
  go("same", steps=1, init_from=str(export), model__hidden_size=16, init_structure=True)
  albert_jax.save(tmp_path / "other", *albert_jax.load(export))
  (tmp_path / "other-vocabulary").mkdir()
  made_up.vocabulary(tmp_path / "other-vocabulary", 150)
  shutil.copy(tmp_path / "other-vocabulary/spiece.model", tmp_path / "other")
  with pytest.raises(UserError, match=r"another vocabulary \(200 pieces\) .* \(150 pieces\).*--spm=.*--keep_pieces"):
    go("other-run", init_from=str(tmp_path / "other"))
  assert not (tmp_path / "other-run").exists()


def test_the_optimizer_state_of_another_run_is_refused():
  config = ConfigDict({"init_from": "old", "steps": 100})
  params = {"a": np.zeros(2), "b": np.zeros(2)}
  run._check_moments(config, params, {"step": 100, "m": params, "v": params})
  for step, moments, message in (
    (101, params, r"old is at step 101, past the end of this run, steps=100, .*; try --config\.steps=1101"),
    (1, {"a": params["a"]}, "old has no moments of b, unlike this run's parameters"),
    (1, {**params, "c": params["a"]}, "old also has moments of c"),
  ):
    with pytest.raises(UserError, match=message):
      run._check_moments(config, params, {"step": step, "m": moments, "v": moments})


def test_a_guard_may_end_the_run_at_once(go):
  go.bad_batches.add(3)
  with pytest.raises(FloatingPointError, match="step 4; the checkpoint of step 2 is sound"):
    go("run", guard__give_up=0)
  with pytest.raises(FloatingPointError):  # Its rate may have been cut before.
    go("run", guard__give_up=0, guard__cut_rate=0.5)
  with pytest.raises(UserError, match=r"guard\.cut_rate=0\.5 has no effect with guard\.give_up=0"):
    go("other", guard__give_up=0, guard__cut_rate=0.5)


def test_the_learning_rate_is_cut_after_an_alarm(go):
  go.bad_batches.add(4)
  cut, healthy = (
    go(name, optimizer__schedule="constant", guard__cut_rate=factor) for name, factor in (("a", 0.5), ("b", 1.0))
  )  # fmt: skip
  rates = [[only(lines, "train")[step, "train"]["learning_rate"] for step in range(1, 9)] for lines in (cut, healthy)]
  np.testing.assert_allclose(np.divide(*rates), [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5])


@pytest.mark.parametrize(
  ("name", "text"), [("seq_length", "4:0.25,6:0.625"), ("batch_size", "16:0.5"), ("num_hidden_layers", "2:0.5")]
)
def test_a_curriculum_resumes_across_its_stages(go, name, text):
  more = {f"curriculum__{name}": text, "checkpoint_every": 3}
  whole = go("whole", **more)
  if name == "batch_size":
    assert [rows for _, rows, _ in go.served] == [16] * 4 + [8] * 4
    assert [row for row, *_ in go.served] == [0, 16, 32, 48, 64, 72, 80, 88]
  if name == "seq_length":
    assert [length for *_, length in go.served] == [4, 4, 6, 6, 6, 8, 8, 8]
  shutil.copytree(go.folder / "whole", go.folder / "killed")
  forget_after(go.folder / "killed", 3)
  assert go("killed", **more) == whole
  same_weights(go.folder / "killed", go.folder / "whole")


def test_a_depth_curriculum_ends_with_the_configs_own_depth(go):
  go("run", curriculum__num_hidden_layers="1:0.5", model__num_hidden_layers=2, steps=2, eval_every=2)
  assert albert_jax.load(go.folder / "run" / "export")[0].num_hidden_layers == 2
  with pytest.raises(UserError, match="layers that share all their weights"):
    go("other", curriculum__num_hidden_layers="1:0.5", model__share="none")


@pytest.mark.parametrize(("limit", "steps"), [({"epochs": 1.0}, 5), ({"tokens": 300.0}, 5)])
def test_epochs_and_tokens_are_steps_of_the_schedule_too(go, limit, steps):
  lines = go("run", **limit)
  assert max(step for step, _ in lines) == steps
  assert json.loads((go.folder / "run" / "config.json").read_text())["steps"] == steps
  assert lines[steps, "train"]["learning_rate"] == pytest.approx(1e-3 / steps)


def test_hours_are_settled_once(go, monkeypatch, caplog):
  timed = []

  def fake(*args):
    timed.append(args)
    return real(*args)

  real = run._steps_in_hours
  monkeypatch.setattr(run, "_steps_in_hours", fake)
  # A step of this model takes some milliseconds: the steps are too many, so the evaluations are made to cost.
  monkeypatch.setattr(run.duration, "steps_in", lambda seconds, parts, costs, *rest: 4 if min(costs) > 0 else 0)
  lines = go("run", hours=1.0)
  assert max(step for step, _ in lines) == 4
  assert "1 hours are 4 steps" in caplog.text
  assert go("run", hours=1.0) == lines
  assert len(timed) == 1


def scores(monkeypatch, *values):
  """Makes the evaluations of a run, in their order, give these values of "score"."""
  left = list(values)

  def evaluate(*args):
    return {"score": left.pop(0), "mlm_loss": 1.0}, {}

  monkeypatch.setattr(run, "evaluate_program", evaluate)
  return left


def test_the_best_checkpoint_is_kept_and_exported(go, monkeypatch, caplog):
  short = go("short", steps=4, eval_every=2, checkpoint_every=2, optimizer__schedule="constant")
  left = scores(monkeypatch, 0.1, 0.9, 0.5, 0.4)
  more = {"eval_every": 2, "best": "score", "keep_checkpoints": 1, "optimizer__schedule": "constant"}
  lines = go("run", **more)
  assert sorted(path.name for path in (go.folder / "run" / "checkpoints").iterdir()) == ["4", "8"]
  assert "The best score was at step 4; its checkpoint is exported." in caplog.text
  assert only(lines, "train")[4, "train"] == short[4, "train"]
  same_weights(go.folder / "run", go.folder / "short")
  assert not left
  assert go("run", **more) == lines  # Run again it finds the same best, without an evaluation.


def test_a_config_that_lacks_fields_is_one_line():
  with pytest.raises(UserError, match="the config lacks task, data, model, optimizer, guard; begin with that of an"):
    run.check(ConfigDict({"seed": 1}))


def test_best_needs_held_out_labels():
  config = common.load_config(f"{CONFIG}:tiny")
  config.best = "f1"
  task = types.SimpleNamespace(has_labels=True, metrics=("f1",))
  run._check_best(config, task)
  task.has_labels = False
  with pytest.raises(UserError, match=r"best='f1' needs held-out labels, and data\.validation_split=.* has none"):
    run._check_best(config, task)


def test_it_ends_early_and_stays_ended(go, monkeypatch):
  left = scores(monkeypatch, 0.1, 0.9, 0.5, 0.9, 0.4)
  more = {"steps": 20, "eval_every": 2, "best": "score", "early_stop": 2}
  lines = go("run", **more)
  assert max(step for step, _ in lines) == 8
  assert left == [0.4]
  assert go("run", **more) == lines
  assert not go.served
  assert left == [0.4]
  with pytest.raises(UserError, match="early_stop=2 needs a metric"):
    go("other", early_stop=2)
  with pytest.raises(UserError, match="best='f1' is not among the held-out metrics: mlm_loss, mlm_accuracy, sop_loss"):
    go("other", best="f1")


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("keep_checkpoints", 0, "keep_checkpoints=0 must be 1 or more$"),
    ("checkpoint_every", 0, "checkpoint_every=0 must be 1 or more; for none before the last step, one above"),
    ("eval_every", 0, "eval_every=0 must be 1 or more; "),
    ("log_every", 0, "log_every=0 must be 1 or more; "),
    ("batch_size", 0, "batch_size=0 must be 1 or more$"),
    ("keep_every", -1, "keep_every=-1 must be 0 or more"),
  ],
)
def test_numbers_that_mean_nothing_are_refused_before_anything_is_there(go, name, value, message):
  with pytest.raises(UserError, match=message):
    go("run", **{name: value})
  assert not (go.folder / "run").exists()


def test_the_running_mean_is_what_is_evaluated_and_exported(go):
  more = {"optimizer__schedule": "constant", "eval_every": 2, "steps": 4}
  plain, mean = go("plain", **more), go("mean", optimizer__ema=0.5, **more)
  for step in range(1, 5):  # Training itself is the same.
    assert plain[step, "train"] == mean[step, "train"]
  assert plain[4, "eval"]["mlm_loss"] != mean[4, "eval"]["mlm_loss"]
  # The export is what the last evaluation saw.
  cfg, params = albert_jax.load(go.folder / "mean" / "export")
  sums = pretrain.sums(cfg, params, batch(-1 % 2**32, 8, 8), None)
  assert float(sums["mlm_loss"][0] / sums["mlm_loss"][1]) == pytest.approx(mean[4, "eval"]["mlm_loss"], rel=1e-5)


def test_a_stuck_run_is_told_so(go, caplog):
  go("run", model__initializer_range=1e-4, optimizer__learning_rate=1e-9)
  assert caplog.text.count("After 4 steps it is too early to tell whether this run learns: mlm_loss 5.") == 1
  assert "After 8 steps" not in caplog.text


def test_a_profile_of_some_steps(go, caplog):
  go("run", (3, 4), steps=6)
  assert list((go.folder / "run" / "profile").rglob("*.xplane.pb"))
  assert "The profile of steps 3 to 4" in caplog.text


def test_every_checkpoint_has_a_run_card(go):
  go("run", steps=4)
  go("run", steps=6)
  card = json.loads((go.folder / "run" / "run.json").read_text())
  assert [again["step"] for again in card["resumed"]] == [4]
  assert card["config"]["model"]["hidden_size"] == 8
  assert card["devices"] == {"cpu": 8}
  assert card["vocabulary"]
  cards = [json.loads((go.folder / "run" / "checkpoints" / step / "run.json").read_text()) for step in ("2", "6")]
  assert cards[0]["id"] == cards[1]["id"] == card["id"]
  assert cards[1] == card


@pytest.mark.parametrize("damage", ["lines", "notes", "checkpoint"])
def test_damage_beside_whole_checkpoints_costs_nothing(go, damage, caplog):
  whole = go("whole")
  folder = go.folder / "damaged"
  shutil.copytree(go.folder / "whole", folder)
  forget_after(folder, 6)
  if damage == "lines":
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:2]))
  if damage == "notes":
    for name in ("run.json", "config.json", "guard.json", "checkpoints/6/checksums.json", "checkpoints/6/guard.json"):
      (folder / name).write_bytes(b"")
  if damage == "checkpoint":
    (folder / "checkpoints" / "6" / "checksums.json").unlink()
    (folder / "checkpoints" / "6" / "_CHECKPOINT_METADATA").write_text('{"a":' + "[" * 100_000)
  caplog.clear()
  assert go("damaged") == whole
  words = {"lines": "had lost", "notes": "run.json is damaged", "checkpoint": "renamed to damaged-6"}
  assert words[damage] in caplog.text
  same_weights(folder, go.folder / "whole")


def test_a_batch_that_cannot_be_made_is_one_line(go, monkeypatch):
  def killed(*args):
    raise RuntimeError("worker died\nat some place")
    yield

  make = tasks.make
  monkeypatch.setattr(tasks, "make", lambda *args: dataclasses.replace(make(*args), train_batches=killed))
  with pytest.raises(OSError, match=r"batch 0 could not be made \(worker died\), perhaps because a worker process"):
    go("run")


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"tokens": float("nan")}, "tokens=nan must be a finite number"),
    ({"batch_size": 10**12}, "batch_size=1000000000000 must be 4,194,304 or less"),
    ({"seed": 2**63}, "seed=9223372036854775808 must be 4,294,967,295 or less"),
    ({"hang_minutes": 1e-9}, "hang_minutes=1e-09 must be 0.01 or more, or 0 for never"),
    ({"loss.mlm_weight": -1.0}, r"loss\.mlm_weight=-1\.0 must be"),
    ({"loss.mlm_weight": 1e-320}, r"loss\.mlm_weight=1e-320 must be"),
    ({"loss.mlm_weight": 0.0, "loss.sop_weight": 0.0}, r"loss\.mlm_weight=0 and loss\.sop_weight=0 leave nothing"),
    ({"model.initializer_range": float("inf")}, "must be a finite number"),
    ({"init_missing": "sop/"}, "init_missing=sop/ has no effect without a checkpoint"),
    ({"init_optimizer": True}, "init_optimizer=True has no effect without a checkpoint"),
    ({"init_structure": True}, "init_structure=True has no effect without a checkpoint"),
    ({"init_missing": "(", "init_from": "x"}, r"init_missing='\(' is not a regular expression"),
    (
      {"data.max_predictions": 127},
      r"data\.max_predictions=127 exceeds the 126 tokens of a row of 128 that can be masked",
    ),
    ({"keep_every": 400}, "keep_every=400 and checkpoint_every=250: .* as --config.keep_every=500"),
    ({"steps": 5, "tokens": 100.0}, "steps=5 and tokens=100 both limit the run"),
  ],
)
def test_a_value_without_a_meaning_is_refused(values, message):
  config = common.load_config(f"{CONFIG}:tiny")
  config.update_from_flattened_dict(values)
  with pytest.raises(UserError, match=message):
    run.check(config)


def test_the_longest_rows_of_a_curriculum_have_room_for_all_predictions():
  config = common.load_config(f"{CONFIG}:tiny")
  config.update_from_flattened_dict({"data.max_predictions": 77, "curriculum.seq_length": "512:0.1,32:0.5"})
  run.check(config)
  config.data.max_predictions = 511
  with pytest.raises(UserError, match="exceeds the 510 tokens of a row of 512"):
    run.check(config)


@pytest.mark.parametrize(("name", "values", "message"), [
  ("plbert", {"loss.word_weight": -1.0}, r"loss\.word_weight=-1\.0 must be 0, or from"),
  ("classify", {"eval_batches": 5}, "eval_batches=5 is for pre-training; .* task.name=classify are of all"),
])  # fmt: skip
def test_so_is_one_of_another_task(name, values, message):
  config = common.load_config(f"{name}:{'base' if name == 'plbert' else 'tiny'}")
  run.check(config)
  config.update_from_flattened_dict(values)
  with pytest.raises(UserError, match=message):
    run.check(config)
