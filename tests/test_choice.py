"""Multiple choice from the command line to its answers; options that only fill up are no options."""

import json
import pathlib
import random

import jax
import made_up
import numpy as np
import pytest

import albert_jax
from albert_jax import convert, tasks
from albert_jax.__main__ import main
from albert_jax.commands.common import load_config
from albert_jax.errors import UserError
from albert_jax.tasks import choice
from albert_jax.training.writer import read

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "race.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  return made_up.checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """RACE's folders, with a question or two a passage; and own.jsonl, with two or three options."""
  folder, rng = tmp_path_factory.mktemp("RACE"), random.Random(0)
  rows = []
  for split, count in (("train", 12), ("dev", 7)):
    for level in ("middle", "high"):
      (folder / split / level).mkdir(parents=True)
      for i in range(count):
        options = rng.sample(["badu", "mola", "gine", "toro", "kelo"], 4)
        best, questions = rng.randrange(4), 1 + i % 2
        row = {
          "article": f"mola {options[best]} gi", "questions": ["Where is _ ?", "who"][:questions],
          "options": [options] * questions, "answers": ["ABCD"[best]] * questions, "id": str(i),
        }  # fmt: skip
        (folder / split / level / f"{i}.txt").write_text(json.dumps(row))
        rows.append({"context": row["article"], "options": options[: 2 + i % 2], "label": i % 2})
  (folder / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
  return folder


def flags(checkpoint, folder, **overrides):
  values = {
    "init_from": checkpoint, "data__dataset": folder, "data__seq_length": 32, "data__qa_length": 12, "batch_size": 8,
    "steps": 4, "eval_every": 2, "checkpoint_every": 2, "log_every": 1, "optimizer__warmup_steps": 1, **overrides,
  }  # fmt: skip
  return [f"--config={CONFIG}:tiny", *(f"--config.{k.replace('__', '.')}={v}" for k, v in values.items())]


def make(checkpoint, folder, **data):
  config = load_config(f"{CONFIG}:tiny")
  cfg, _ = albert_jax.load(checkpoint)
  config.update({"batch_size": 8, "model": {name: getattr(cfg, name) for name in tasks.STRUCTURE}})
  config.data.update({"dataset": str(folder), "seq_length": 32, "qa_length": 12} | data)
  return tasks.make(config, convert.load_tokenizer(checkpoint))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_runs")
class TestEndToEnd:
  def test_train_go_on_and_evaluate(self, checkpoint, folder, tmp_path, capsys):
    workdir = tmp_path / "run"
    for steps in (2, 4):
      assert main(["train", *flags(checkpoint, folder, steps=steps), f"--workdir={workdir}"]) == 0
    lines = read(workdir)
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4]
    held_out = [line for line in lines if line["split"] == "eval"]
    assert {"loss", "accuracy", "accuracy_middle", "accuracy_high"} <= set(held_out[-1])
    fields = json.loads((workdir / "export/config.json").read_text())
    assert fields["architectures"] == ["AlbertForMultipleChoice"]
    assert fields["albert_jax_task"] == {"name": "choose", "labels": [], "seq_length": 32, "qa_length": 12}
    answers = [json.loads(line) for line in (workdir / "predictions/predictions.jsonl").read_text().splitlines()]
    best = max(held_out, key=lambda line: line["accuracy"])
    assert len(answers) == 20
    assert np.mean([a["prediction"] == a["gold"] for a in answers]) == pytest.approx(best["accuracy"])
    assert best["accuracy"] == pytest.approx((best["accuracy_middle"] + best["accuracy_high"]) / 2)  # 10 each

    capsys.readouterr()
    assert main(["evaluate", *flags(checkpoint, folder), f"--checkpoint={workdir}"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers == pytest.approx({k: v for k, v in best.items() if k not in ("step", "split")}, rel=1e-5)


class TestOptions:
  def test_what_only_fills_up_is_never_chosen_and_changes_nothing(self, checkpoint, folder):
    task = make(checkpoint, folder, validation_split=str(folder / "own.jsonl"))
    batch = next(iter(task.eval_batches(0, 1)))
    assert batch["input_ids"].shape[1] == 3
    params = task.init(jax.random.key(0))
    logits = task.outputs(params, batch)["logits"]
    two = batch["options"] == 2
    assert two.any()
    assert not two.all()
    assert np.all(np.argmax(logits[two], axis=1) < 2)
    only = {k: v[:, :2] if v.ndim > 1 else v for k, v in batch.items()}
    np.testing.assert_allclose(task.outputs(params, only)["logits"][two], logits[two, :2], rtol=1e-5)
    loss, weight = task.sums(params, batch | {"weight": two.astype(np.float32)}, None)["loss"]
    log_p = jax.nn.log_softmax(logits[two, :2])
    expected = -np.take_along_axis(np.asarray(log_p), batch["label"][two, None], axis=1).sum()
    assert loss == pytest.approx(expected, rel=1e-5)
    assert weight == two.sum()

  def test_dropout_differs_between_options(self, checkpoint, folder):
    task = make(checkpoint, folder)
    batch = next(iter(task.train_batches(0, 0, 1)))
    same = {k: np.repeat(v[:, :1], 4, axis=1) if v.ndim > 1 else v for k, v in batch.items()}
    keys = jax.random.split(jax.random.key(1), 8)
    logits = jax.jit(choice.logits, static_argnums=0)(task.model, task.init(jax.random.key(0)), same, keys)
    assert np.all(np.ptp(logits, axis=1) > 0)

  def test_baselines_and_what_has_no_answer(self, checkpoint, folder, tmp_path):
    assert make(checkpoint, folder).baselines["accuracy_high"] == (0.25, "guessing")
    rows = [{"context": "a", "options": ["x", "y"]}] * 2
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = make(checkpoint, folder, validation_split=str(tmp_path / "test.jsonl"))
    numbers, files = task.score({"logits": [np.array([0.0, 1.0])] * 2})
    assert numbers == {}
    lines = [json.loads(line) for line in files["predictions.jsonl"].splitlines()]
    assert lines[0] == {"index": 0, "prediction": 1, "probabilities": [0.268941, 0.731059]}
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, [rows[0], rows[0] | {"label": 0}])))
    with pytest.raises(UserError, match="only 1 of 2 questions have an answer"):
      make(checkpoint, folder, validation_split=str(tmp_path / "test.jsonl"))

  def test_mistakes(self, checkpoint, folder):
    with pytest.raises(UserError, match=r"expected 1 to data\.seq_length - 3 = 29"):
      make(checkpoint, folder, qa_length=30)
    with pytest.raises(UserError, match="scores are not finite"):
      make(checkpoint, folder).score({"logits": [np.full(4, np.nan)] * 20})


def test_choose(checkpoint, folder):
  task = make(checkpoint, folder)
  params = task.init(jax.random.key(0))
  items = [{"context": "badu", "question": "gi _ ?", "options": ["mola", "toro", "kelo"]},
           {"context": "badu", "options": ["mola", "toro"]}]  # fmt: skip
  answers = choice.choose(task.model, params, task.vocabulary, items, seq_length=32, qa_length=12)
  assert [len(answer["scores"]) for answer in answers] == [3, 2]
  for item, answer in zip(items, answers, strict=True):
    assert sum(answer["scores"]) == pytest.approx(1)
    assert answer["text"] == item["options"][answer["choice"]]
    assert answer["score"] == max(answer["scores"])


def test_score_files(tmp_path):
  gold, predictions = tmp_path / "gold.jsonl", tmp_path / "predictions.jsonl"
  gold.write_text("\n".join(json.dumps({"context": "a", "options": ["x", "y"], "label": i % 2}) for i in range(4)))
  predictions.write_text("\n".join(json.dumps({"prediction": 1}) for _ in range(4)))
  assert choice.score_files(predictions, gold) == {"accuracy": 0.5}
  predictions.write_text('{"prediction": 1}')
  with pytest.raises(UserError, match=r"has 1 answers, .* 4 questions"):
    choice.score_files(predictions, gold)
  for wrong in (2, 0.5, -1):
    predictions.write_text("\n".join(json.dumps({"prediction": n}) for n in (0, wrong, 1, 1)))
    with pytest.raises(
      UserError, match=rf"predictions.jsonl line 2: {wrong} is none of 0 to 1, the number of an option"
    ):
      choice.score_files(predictions, gold)
