"""Classification of a user's own texts: from the command line to its answers, and each choice by itself."""

import json
import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import made_up
import numpy as np
import optax
import pytest

import albert_jax
from albert_jax import convert, tasks
from albert_jax import run as albert_jax_run
from albert_jax.__main__ import main
from albert_jax.commands.common import load_config
from albert_jax.data.finetuning import tables
from albert_jax.errors import UserError
from albert_jax.tasks import classify
from albert_jax.training.writer import read

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "classify.py"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  return made_up.checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """train.csv and dev.tsv: texts of which some have the word "kiki", and whether they have; also pairs and numbers."""
  folder, rng = tmp_path_factory.mktemp("data"), random.Random(0)
  for name, separator, count in (("train.csv", ",", 64), ("dev.tsv", "\t", 19)):
    lines = [["text", "other", "label", "score", "tags"]]
    for i in range(count):
      words = rng.choices(["badu", "mola", "gine", "toro"], k=rng.randint(2, 9))
      yes = i % 3 == 0
      words[rng.randrange(len(words))] = "kiki" if yes else "mola"
      tags = ["badu"] * ("badu" in words) + ["kiki"] * yes
      lines.append([" ".join(words), "gine toro", "yes" if yes else "no", str(len(words) / 2), ";".join(tags)])
    (folder / name).write_text("\n".join(separator.join(line) for line in lines) + "\n")
  return folder


def flags(checkpoint, folder, **overrides):
  values = {
    "init_from": checkpoint, "data__dataset": folder, "data__seq_length": 32, "batch_size": 16, "epochs": 3,
    "eval_every": 6, "checkpoint_every": 6, "log_every": 1, "optimizer__warmup_steps": 2,
    "optimizer__learning_rate": 3e-3, **overrides,
  }  # fmt: skip
  return [f"--config={CONFIG}:base", *(f"--config.{k.replace('__', '.')}={v}" for k, v in values.items())]


def config_of(checkpoint, folder, **overrides):
  """Returns the config as the loop hands it to the task."""
  config = load_config(f"{CONFIG}:tiny")
  config.update({"init_from": str(checkpoint), "batch_size": 16})
  config.data.update({"dataset": str(folder), "seq_length": 32})
  config.model.update({
    "vocab_size": 400, "embedding_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64,
    "max_position_embeddings": 128,
  })  # fmt: skip
  for name, value in overrides.items():
    *parents, last = name.split("__")
    part = config
    for parent in parents:
      part = part[parent]
    part[last] = value
  return config


def make(checkpoint, folder, **overrides):
  return tasks.make(config_of(checkpoint, folder, **overrides), convert.load_tokenizer(checkpoint))


@pytest.fixture(scope="module")
def run(checkpoint, folder, tmp_path_factory):
  """Returns a run of 12 steps, stopped after 6 and gone on with."""
  workdir = tmp_path_factory.mktemp("runs") / "run"
  for duration in ({"epochs": 0, "steps": 6}, {}):
    assert main(["train", *flags(checkpoint, folder, **duration), f"--workdir={workdir}"]) == 0
  return workdir


@pytest.mark.slow
@pytest.mark.usefixtures("quick_runs")
class TestEndToEnd:
  def test_a_run_leaves_an_export_that_knows_its_labels(self, run, folder):
    fields = json.loads((run / "export/config.json").read_text())
    assert fields["architectures"] == ["AlbertForSequenceClassification"]
    assert fields["id2label"] == {"0": "no", "1": "yes"}
    assert fields["problem_type"] == "single_label_classification"
    assert fields["albert_jax_task"] == {
      "name": "classify", "labels": ["no", "yes"], "kind": "classification", "pair": False, "seq_length": 32,
    }  # fmt: skip
    assert [line["step"] for line in read(run) if line["split"] == "train"] == list(range(1, 13))
    held_out = [line for line in read(run) if line["split"] == "eval"]
    assert [line["step"] for line in held_out] == [6, 12]
    assert {"loss", "accuracy", "macro_f1", "mcc", "auc"} <= set(held_out[-1])
    answers = [json.loads(line) for line in (run / "predictions/predictions.jsonl").read_text().splitlines()]
    assert len(answers) == 19
    assert [answer["gold"] for answer in answers] == ["yes" if i % 3 == 0 else "no" for i in range(19)]
    best = min(held_out, key=lambda line: line["loss"])
    assert np.mean([answer["gold"] == answer["prediction"] for answer in answers]) == pytest.approx(best["accuracy"])
    for answer in answers:
      assert answer["prediction"] == max(answer["probabilities"], key=answer["probabilities"].get)

  def test_a_folder_of_the_hub(self, checkpoint, tmp_path, capsys):
    names, data = made_up.classes("yes", "no", "never"), tmp_path / "hub/data"
    rows = [{"text": f"{'kiki' if i % 2 else 'mola'} gine", "label": i % 2} for i in range(32)]
    for split, count in (("train", 2), ("test", 1)):
      made_up.hub(data, split, rows, count, label=names)
    arguments = ["train", *flags(checkpoint, tmp_path / "hub"), f"--workdir={tmp_path / 'run'}"]
    assert main(arguments) == 2
    assert "no file of the split 'validation': expected validation, dev" in capsys.readouterr().err
    arguments.append("--config.data.validation_split=test")
    assert main(arguments) == 0
    fields = json.loads((tmp_path / "run/export/config.json").read_text())
    assert fields["id2label"] == {"0": "yes", "1": "no"}
    card = json.loads((tmp_path / "run/run.json").read_text())
    files = ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")
    assert {*card["dataset"]} == {f"{tmp_path}/hub/data/{name}.parquet" for name in files}
    made_up.hub(data, "train", rows[::-1], 2, label=names)
    assert main(arguments) == 2
    assert "train-00001-of-00002.parquet changed since the run" in capsys.readouterr().err

  def test_evaluate_gives_the_same_numbers_without_the_training_data(self, run, checkpoint, folder, tmp_path, capsys):
    only = tmp_path / "only"
    only.mkdir()
    (only / "dev.tsv").write_bytes((folder / "dev.tsv").read_bytes())
    capsys.readouterr()
    assert main(["evaluate", *flags(checkpoint, only), f"--checkpoint={run}", f"--out={tmp_path / 'out'}"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    best = min((line for line in read(run) if line["split"] == "eval"), key=lambda line: line["loss"])
    assert numbers == pytest.approx({k: v for k, v in best.items() if k not in ("step", "split")}, rel=1e-5)
    assert (tmp_path / "out/predictions.jsonl").read_bytes() == (run / "predictions/predictions.jsonl").read_bytes()

  def test_a_checkpoint_without_a_vocabulary_takes_the_one_that_is_given(self, checkpoint, folder, tmp_path, capsys):
    shutil.copytree(checkpoint, tmp_path / "bare")
    (tmp_path / "bare/spiece.model").rename(tmp_path / "spiece.model")
    (tmp_path / "bare/tokenizer.json").unlink()
    short = {"epochs": 0, "steps": 1, "optimizer__warmup_steps": 0}
    assert main(["train", *flags(tmp_path / "bare", folder, **short), f"--workdir={tmp_path / 'run'}"]) == 2
    assert "holds no vocabulary" in capsys.readouterr().err
    short["data__spm"] = tmp_path / "spiece.model"
    assert main(["train", *flags(tmp_path / "bare", folder, **short), f"--workdir={tmp_path / 'run'}"]) == 0
    assert (tmp_path / "run/export/spiece.model").read_bytes() == (tmp_path / "spiece.model").read_bytes()

  def test_rows_without_labels_get_answers_and_no_numbers(self, run, checkpoint, tmp_path, capsys):
    (tmp_path / "new.jsonl").write_text('{"text": "badu kiki"}\n{"text": ""}\n')
    split = f"--config.data.validation_split={tmp_path / 'new.jsonl'}"
    arguments = [*flags(checkpoint, tmp_path), split, f"--checkpoint={run / 'export'}", f"--out={tmp_path / 'out'}"]
    assert main(["evaluate", *arguments]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {}
    assert "1 of 2 rows have an empty 'text'" in captured.err
    assert "has no labels, so there are no metrics; the answers are in" in captured.err
    assert main(["evaluate", *arguments[:-1]]) == 2
    assert "no metrics; give a split with labels, or --out=DIR for the answers" in capsys.readouterr().err
    answers = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert [set(answer) for answer in answers] == [{"index", "prediction", "probabilities"}] * 2

  def test_labels_of_a_checkpoint_that_are_not_the_datas(self, run, checkpoint, folder, tmp_path, capsys):
    (tmp_path / "dev.csv").write_text("text,label\nbadu,maybe\n")
    assert main(["evaluate", *flags(checkpoint, tmp_path), f"--checkpoint={run}"]) == 2
    assert "dev.csv line 2 has the label 'maybe', unknown in training; there are no, yes" in capsys.readouterr().err
    other = "--config.task.labels=yes,no"
    assert main(["evaluate", *flags(checkpoint, folder), other, f"--checkpoint={run}"]) == 2
    assert "its labels is ['no', 'yes'], that of the config ['yes', 'no']" in capsys.readouterr().err

  def test_quotes_are_for_tables(self, run, folder, tmp_path, capsys):
    (tmp_path / "dev.jsonl").write_text('{"text": "badu kiki", "label": "yes"}\n{"text": "mola", "label": "no"}\n')
    arguments = ["evaluate", f"--checkpoint={run}", "--config.data.quotes=none"]
    assert main([*arguments, f"--config.data.dataset={tmp_path}", "--config.data.split=dev"]) == 2
    assert "data.quotes=none is for tables (.csv, .tsv, .txt), and data.dataset=" in capsys.readouterr().err
    assert main(arguments) == 0

  def test_a_checkpoint_without_the_head_is_one_clear_error(self, checkpoint, folder, capsys):
    assert main(["evaluate", *flags(checkpoint, folder), f"--checkpoint={checkpoint}"]) == 2
    assert "missing: classifier/kernel [32, 2]" in capsys.readouterr().err

  def test_a_classifier_is_fresh_unless_it_is_to_be_kept(self, run, folder):
    _, loaded = albert_jax.load(run)
    for keep in (False, True):
      task = make(run, folder, task__keep_head=keep)
      params = jax.device_get(task.init(jax.random.key(0)))
      fitted, line = convert.fit(params, loaded, new=task.new, unused=task.unused)
      expected = loaded if keep else params
      np.testing.assert_array_equal(fitted["classifier"]["kernel"], expected["classifier"]["kernel"])
      np.testing.assert_array_equal(fitted["pooler"]["kernel"], loaded["pooler"]["kernel"])
      note = "new: none" if keep else "new: classifier/bias, classifier/kernel; not used: classifier/bias"
      assert note in line

  def test_a_classifier_to_keep_has_to_have_the_same_labels(self, run, folder, tmp_path, capsys):
    wrong = ["--config.task.keep_head=True", "--config.task.labels=yes,no", f"--workdir={tmp_path / 'wrong'}"]
    assert main(["train", *flags(run, folder), *wrong]) == 2
    assert "its labels is ['no', 'yes'], that of the config ['yes', 'no']" in capsys.readouterr().err


def test_settings_that_the_files_leave_without_effect(checkpoint, folder, tmp_path, caplog):
  for name in ("train", "dev"):
    (tmp_path / f"{name}.jsonl").write_text('{"text": "badu", "label": 1}\n{"text": "mola", "label": 0}\n')
  workdir = str(tmp_path / "run")
  with pytest.raises(UserError, match=r"data\.quotes=none is for tables \(\.csv, \.tsv, \.txt\), and .* has none"):
    albert_jax_run.settle(config_of(checkpoint, tmp_path, data__quotes="none"), workdir)
  albert_jax_run.settle(config_of(checkpoint, folder, data__quotes="none"), workdir)
  assert "has no effect" not in caplog.text
  albert_jax_run.settle(config_of(checkpoint, tmp_path, data__tfds_dir="/tfds"), workdir)
  assert "data.tfds_dir=/tfds has no effect: data.dataset=" in caplog.text
  (tmp_path / "run/checkpoints/3").mkdir(parents=True)
  albert_jax_run.settle(config_of(checkpoint, tmp_path, data__quotes="none"), workdir)  # One that has begun goes on.


class TestData:
  @pytest.mark.parametrize(
    ("overrides", "words"),
    [
      ({"data__label_field": "lable"}, "no column 'lable'; expected one of text, other, label, .*data.text_fields"),
      ({"data__text_fields": "a,b,c"}, "expected one column, or two"),
      ({"task__kind": "regresion"}, "use one of classification, regression, multilabel"),
      ({"task__kind": "regression"}, r"dev\.tsv line 2: \"yes\" is no number"),
      ({"task__class_weights": "balance"}, "use balanced, or '' for none"),
      ({"task__kind": "regression", "data__label_field": "score", "task__label_smoothing": 0.1}, "label_smoothing=0.1"),
      ({"task__r_drop": 1.0, "model__classifier_dropout_prob": 0.0}, "compares two passes with dropout"),
      ({"task__labels": "yes,perhaps"}, "has the label 'no', unknown in training; there are yes, perhaps"),
      ({"data__seq_length": 256}, "data.seq_length=256 exceeds the model's 128 positions"),
      ({"data__label_field": "other"}, "has 1 different labels; expected two at least"),
    ],
  )
  def test_a_mistake_is_one_line(self, overrides, words, checkpoint, folder):
    with pytest.raises(UserError, match=words) as error:
      next(iter(make(checkpoint, folder, **overrides).train_batches(0, 0, 1)))
    assert "\n" not in str(error.value)

  def test_another_vocabulary_than_the_checkpoints(self, checkpoint, folder, tmp_path):
    other = made_up.vocabulary(tmp_path, size=300)
    with pytest.raises(UserError, match="is another vocabulary than the checkpoint's"):
      make(checkpoint, folder, data__spm=str(other))
    assert make(checkpoint, folder, data__spm=str(checkpoint)).vocabulary.path.startswith(str(checkpoint))

  def test_a_text_taken_for_a_label(self, checkpoint, tmp_path):
    (tmp_path / "all.csv").write_text("text,label\n" + "".join(f"a{i},b{i}\n" for i in range(200)))
    with pytest.raises(UserError, match=r"has 18\d different labels in 18\d rows; is it the label"):
      make(checkpoint, tmp_path / "all.csv", data__validation_fraction=0.1)

  def test_a_label_that_is_missing(self, checkpoint, folder, tmp_path):
    for name, words in (("train.csv", r"train\.csv line 3 has no label"), ("dev.csv", r"dev\.csv line 3 has no label")):
      for file in ("train.csv", "dev.csv"):
        (tmp_path / file).write_text(f"text,label\na,x\nb,{'x' if name != file else ''}\nc,z\n")
      with pytest.raises(UserError, match=words):
        next(iter(make(checkpoint, tmp_path).train_batches(0, 0, 1)))

  def test_the_classes_of_the_hub_keep_their_order(self, checkpoint, tmp_path, monkeypatch):
    """A run of an earlier version, for which the labels were the numbers, resumes with the same outputs."""
    for split in ("train", "validation"):
      rows = [{"text": "badu", "label": i} for i in (2, 0, 3)]
      made_up.hub(tmp_path, split, rows, label=made_up.classes("World", "Sports", "Business", "Art"))
    assert make(checkpoint, tmp_path).about["albert_jax_task"]["labels"] == ["World", "Business", "Art"]
    monkeypatch.setattr(tables, "_classes", lambda *args: {})
    assert make(checkpoint, tmp_path).about["albert_jax_task"]["labels"] == ["0", "2", "3"]

  def test_a_share_of_one_file_is_held_out(self, checkpoint, folder, capsys):
    task = make(checkpoint, folder / "train.csv", data__validation_fraction=0.3)
    held = list(task.eval_batches(0, 1))
    count = sum(b["weight"].sum() for b in held)
    assert count + task.train_rows == 64
    assert 8 < count < 32

  def test_rows_can_be_left_out_by_label(self, checkpoint, tmp_path, caplog):
    for name in ("train.csv", "dev.csv"):
      (tmp_path / name).write_text("text,label\na,yes\nb,-\nc,no\n")
    task = make(checkpoint, tmp_path, data__drop_labels="-")
    assert task.train_rows == 2
    assert task.about["albert_jax_task"]["labels"] == ["no", "yes"]
    assert "1 rows have a label of data.drop_labels=-" in caplog.text
    make(checkpoint, tmp_path, data__drop_labels="--")
    assert "0 rows have a label of data.drop_labels=--" in caplog.text, "a typing mistake shows"

  def test_rows_of_several_labels_can_be_left_out(self, checkpoint, tmp_path):
    for name in ("train.jsonl", "dev.jsonl"):
      (tmp_path / name).write_text(
        "".join(json.dumps({"text": "a", "label": x}) + "\n" for x in ([], ["x"], ["x", "-"]))
      )
    task = make(checkpoint, tmp_path, task__kind="multilabel", data__drop_labels="-")
    assert (task.train_rows, task.about["albert_jax_task"]["labels"]) == (2, ["x"])

  def test_a_setting_that_would_have_no_effect(self, checkpoint, folder):
    with pytest.raises(UserError, match=r"validation_split='dev\.tsv' is not read, because .*validation_fraction=0$"):
      make(checkpoint, folder, data__validation_fraction=0.3, data__validation_split="dev.tsv")
    with pytest.raises(UserError, match=r"label_separator=';' is for several labels a row, and task\.kind is class"):
      make(checkpoint, folder, data__label_separator=";")

  def test_a_split_without_rows_ends_the_run_before_it_begins(self, checkpoint, folder, tmp_path):
    shutil.copy(folder / "train.csv", tmp_path)
    (tmp_path / "dev.csv").write_text("text,label\n")
    with pytest.raises(UserError, match=r"dev\.csv has no rows"):
      make(checkpoint, tmp_path)
    with pytest.raises(UserError, match=r"no row for validation after data\.validation_fraction=0\.0001"):
      make(checkpoint, folder / "train.csv", data__validation_fraction=0.0001)
    with pytest.raises(UserError, match=r"dev\.tsv has no row for validation after .* data\.drop_labels='no,yes'"):
      make(checkpoint, folder, data__drop_labels="no,yes")

  def test_labels_with_commas_and_of_json(self, checkpoint, tmp_path):
    rows = [{"text": "a", "label": "x, y"}, {"text": "b", "label": True}, {"text": "c", "label": 3}]
    for name in ("train.jsonl", "dev.jsonl"):
      (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
    task = make(checkpoint, tmp_path)
    assert task.about["albert_jax_task"]["labels"] == ["3", "true", "x, y"]
    again = tasks.joined(task.about["albert_jax_task"]["labels"])
    assert make(checkpoint, tmp_path, task__labels=again).about == task.about

  def test_balanced_labels_weigh_the_same(self, checkpoint, folder):
    task = make(checkpoint, folder, task__class_weights="balanced", batch_size=64)
    batch = next(iter(task.train_batches(0, 0, 1)))
    totals = [batch["counts"][batch["label"] == k].sum() for k in (0, 1)]
    assert totals == pytest.approx([32, 32])
    held_out = next(iter(task.eval_batches(0, 1)))
    assert set(held_out["counts"]) == {1.0}


class TestLoss:
  """Against the definitions, on logits given."""

  LABELS = np.array([0, 1, 1, 0])
  WEIGHTS = np.array([1.0, 2.0, 1.0, 0.0], np.float32)

  def batch(self, label):
    return {"label": jnp.asarray(label), "weight": jnp.asarray([1.0, 1, 1, 0]), "counts": jnp.asarray(self.WEIGHTS)}

  def test_classification(self):
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    sums = classify._loss("classification", jnp.asarray(logits), self.batch(self.LABELS), self.WEIGHTS, 0.1)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    target = 0.9 * np.eye(3)[self.LABELS] + 0.1 / 3
    assert sums["loss"][0] == pytest.approx(-(self.WEIGHTS * (target * log_p).sum(axis=1)).sum(), rel=1e-5)
    assert sums["loss"][1] == 4
    assert sums["accuracy"][0] == np.sum((logits.argmax(axis=1) == self.LABELS)[:3])
    assert sums["accuracy"][1] == 3  # a row is a row, whatever it weighs in the loss

  def test_regression_and_multilabel(self):
    logits = np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)
    gold = np.array([0.5, 1, 2, 3], np.float32)
    sums = classify._loss("regression", jnp.asarray(logits), self.batch(gold), self.WEIGHTS, 0.0)
    assert sums["loss"][0] == pytest.approx((self.WEIGHTS * (logits[:, 0] - gold) ** 2).sum(), rel=1e-5)
    gold = np.array([[0, 1], [1, 1], [0, 0], [1, 0]], np.float32)
    sums = classify._loss("multilabel", jnp.asarray(logits), self.batch(gold), self.WEIGHTS, 0.0)
    p = 1 / (1 + np.exp(-logits))
    losses = -np.mean(gold * np.log(p) + (1 - gold) * np.log(1 - p), axis=1)
    assert sums["loss"][0] == pytest.approx((self.WEIGHTS * losses).sum(), rel=1e-5)

  def test_how_far_answers_are_apart(self):
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 4, 3))
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (a, b))
    expected = (np.sum(p * np.log(p / q), axis=1) + np.sum(q * np.log(q / p), axis=1)) / 2
    np.testing.assert_allclose(
      classify._distance("classification", jnp.asarray(a), jnp.asarray(b)), expected, rtol=1e-4
    )
    p, q = (1 / (1 + np.exp(-x)) for x in (a, b))
    both = (p - q) * np.log(p / q) + (q - p) * np.log((1 - p) / (1 - q))
    distances = classify._distance("multilabel", jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(distances, both.mean(axis=1) / 2, rtol=1e-4)
    assert classify._distance("regression", jnp.ones((2, 1)), jnp.zeros((2, 1))).tolist() == [1, 1]

  def test_r_drop_is_a_second_pass(self, checkpoint, folder):
    task = make(checkpoint, folder, task__r_drop=0.5, model__hidden_dropout_prob=0.1)
    batch = next(iter(task.train_batches(0, 0, 1)))
    params = task.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 16)
    sums = jax.jit(task.sums)(params, batch, keys)
    assert sums["r_drop"][0] > 0
    assert task.terms(batch)["r_drop"] == pytest.approx(0.5 / 16)
    assert "r_drop" not in task.sums(params, batch, None)


class TestKinds:
  @pytest.mark.parametrize("name", ["pair", "regression", "multilabel"])
  def test_each_has_its_numbers_and_answers(self, name, checkpoint, folder):
    changes, expected = {
      "pair": ({"data__text_fields": "text,other"}, {"accuracy", "macro_f1", "mcc", "auc"}),
      "regression": ({"data__label_field": "score", "task__kind": "regression"}, {"pearson", "spearman"}),
      "multilabel": (
        {"data__label_field": "tags", "task__kind": "multilabel", "data__label_separator": ";"},
        {"accuracy", "macro_f1", "micro_f1", "auc"},
      ),
    }[name]
    task = make(checkpoint, folder, **changes)
    assert task.about["problem_type"] == classify.KINDS[changes.get("task__kind", "classification")]
    assert set(task.baselines) == {"loss", *expected}
    batch = next(iter(task.eval_batches(0, 1)))
    assert (batch["token_type_ids"].max() == 1) == (name == "pair")
    # As good as it gets: the labels themselves.
    gold = classify.gold_of(
      tables.read(folder, "validation", [changes.get("data__label_field", "label")]),
      changes.get("data__label_field", "label"), changes.get("task__kind", "classification"),
      task.about["albert_jax_task"]["labels"], ";",
    )  # fmt: skip
    answers = {"pair": lambda: np.eye(2)[gold], "regression": lambda: gold[:, None], "multilabel": lambda: gold * 9 - 4}
    best = answers[name]()
    numbers, files = task.score({"outputs": list(best)})
    assert numbers == pytest.approx(dict.fromkeys(expected, 1.0))
    lines = [json.loads(line) for line in files["predictions.jsonl"].splitlines()]
    assert [line["prediction"] for line in lines] == [line["gold"] for line in lines]
    with pytest.raises(UserError, match="scores are not finite"):
      task.score({"outputs": list(np.where(best > 0, np.nan, 0.0))})

  def test_it_learns(self, checkpoint, folder):
    """The word that decides is found in a few steps of plain Adam on one batch."""
    task = make(checkpoint, folder, model__classifier_dropout_prob=0.0)
    batch = next(iter(task.train_batches(0, 0, 1)))
    _, loaded = albert_jax.load(checkpoint)
    params, _ = convert.fit(task.init(jax.random.key(0)), loaded, new=task.new, unused=task.unused)
    tx = optax.adam(3e-3)

    @jax.jit
    def step(carry, _):
      params, state = carry
      grads = jax.grad(lambda p: task.sums(p, batch, None)["loss"][0] / 16)(params)
      updates, state = tx.update(grads, state)
      return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=80)
    assert task.sums(params, batch, None)["accuracy"][0] == 16
