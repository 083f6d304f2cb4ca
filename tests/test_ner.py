"""The tagging task: what counts in the loss, what its files and exports say, and that transformers agrees."""

import json
import logging

import jax
import jax.numpy as jnp
import made_up
import numpy as np
import pytest

import albert_jax
from albert_jax import convert, tasks
from albert_jax.configs import ner as ner_config
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.tasks import heads
from albert_jax.tasks.ner import task as ner

TRAIN = "badefi\tB-X\ngu\tI-X\nlo\tO\n\nmuni\tO\nbadefi\tB-X\n\n"
DEV = "badefi\tB-X\nlo\tO\n\ngu\tB-NEW\nlo\tO\nba\tO\n"
LABELS = ["B-X", "I-X", "O"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Training and validation data, and a vocabulary."""
  folder = tmp_path_factory.mktemp("tagging")
  made_up.vocabulary(folder)
  (folder / "train.tsv").write_text(TRAIN)
  (folder / "dev.tsv").write_text(DEV)
  return folder


@pytest.fixture(scope="module")
def params(folder):
  """Fresh parameters of a small model with the labels of the training data."""
  return jax.jit(tasks.make(config(folder)).init)(jax.random.key(0))


def config(folder, **overrides):
  config = ner_config.get_config("tiny")
  config.model.update({"vocab_size": 400, "hidden_size": 16, "embedding_size": 8, "num_hidden_layers": 1,
                       "intermediate_size": 16, "num_attention_heads": 2, "max_position_embeddings": 64})  # fmt: skip
  config.data.update({"dataset": str(folder), "spm": str(folder), "seq_length": 64})
  config.batch_size = 4
  config.update_from_flattened_dict(overrides)
  return config


def test_what_make_finds(folder, caplog):
  caplog.set_level(logging.INFO, "albert_jax")
  task = tasks.make(config(folder))
  assert task.train_rows == 2
  assert task.about["albert_jax_task"] == {"name": "tag", "labels": LABELS, "seq_length": 64}
  assert task.baselines["token_accuracy"] == (pytest.approx(3 / 5), "always O")
  output = caplog.text
  assert "train: 2 sentences, 5 words" in output
  assert "validation: 2 sentences, 5 words; 1 words with the tag B-NEW, which is not in training" in output


def test_one_tag_alone_teaches_nothing(folder, tmp_path):
  (tmp_path / "train.conll").write_text("a O\nb O\n")
  with pytest.raises(UserError, match=r"every tag is 'O', so there is nothing to learn; expected two different tags"):
    tasks.make(config(folder, **{"data.split": str(tmp_path / "train.conll")}))


def test_labels_may_be_given_and_must_be_all(folder, caplog):
  caplog.set_level(logging.INFO, "albert_jax")
  task = tasks.make(config(folder, **{"task.labels": "O,I-X,B-X,B-NEW"}))
  assert task.about["albert_jax_task"]["labels"] == ["O", "I-X", "B-X", "B-NEW"]
  assert "not in training" not in caplog.text
  with pytest.raises(UserError, match=r"task.labels lacks B-X, which the training data has"):
    tasks.make(config(folder, **{"task.labels": "O,I-X"}))
  # To evaluate, no training data is needed.
  evaluated = tasks.make(config(folder, epochs=0.0, **{"task.labels": "O,I-X,B-X", "data.split": "nowhere"}))
  assert next(evaluated.eval_batches(0, 1))["labels"].shape == (4, 32)


def test_only_first_pieces_of_rows_that_count_are_in_the_loss(folder, params):
  task = tasks.make(config(folder))
  (batch,) = task.eval_batches(0, 1)
  assert batch["weight"].tolist() == [1, 1, 0, 0]
  sums = task.sums(params, batch, None)
  assert float(sums["loss"][1]) == 4  # five words, one of which has a tag without a number
  assert float(task.terms(batch)["loss"]) == pytest.approx(1 / 4)

  logits = heads.at_positions(task.model, "classifier", params, batch)
  losses = -np.asarray(jax.nn.log_softmax(logits))
  expected = sum(losses[b, p, c] for b, p, c in np.argwhere(np.arange(3) == batch["labels"][..., None]) if b < 2)
  assert float(sums["loss"][0]) == pytest.approx(expected, rel=1e-6)
  smooth = ner.sums(task.model, 0.3, params, batch, None)
  assert float(smooth["loss"][0]) == float(sums["loss"][0])  # Smoothing is for training.
  smooth = ner.sums(task.model, 0.3, params, batch, jax.random.split(jax.random.key(0), 4))
  assert float(smooth["loss"][0]) != float(sums["loss"][0])


def test_words_without_tags_get_answers_and_no_numbers(folder, params, tmp_path):
  (tmp_path / "test.txt").write_text("badefi\nlo\n\ngu\n")
  task = tasks.make(config(folder, **{"data.validation_split": str(tmp_path / "test.txt")}))
  (batch,) = task.eval_batches(0, 1)
  assert not task.baselines and float(task.sums(params, batch, None)["loss"][1]) == 0
  rows = np.argsort(batch["row"][:2])
  numbers, files = task.score({"label": [np.full(32, 2) for _ in rows]})
  assert numbers == {}
  assert files["predictions.conll"].decode() == "badefi\tB-X\nlo\tB-X\n\ngu\tB-X\n".replace("B-X", LABELS[2])


def test_the_file_of_predictions_is_scored_as_the_run_was(folder, tmp_path):
  task = tasks.make(config(folder))
  (batch,) = task.eval_batches(0, 1)
  answers = np.where(batch["labels"] == 2, 2, 0)  # B-X wherever it is not O
  rows = np.argsort(batch["row"][:2])
  numbers, files = task.score({"label": [answers[i] for i in rows]})
  assert files["predictions.conll"].decode() == (
    "badefi\tB-X\tB-X\nlo\tO\tO\n\ngu\tB-NEW\tB-X\nlo\tO\tO\nba\tO\tO\n"
  )  # fmt: skip
  assert numbers["token_accuracy"] == pytest.approx(4 / 5)
  assert numbers["precision"] == numbers["recall"] == numbers["f1"] == 0.5
  assert numbers["f1_X"] == pytest.approx(2 / 3)
  path = tmp_path / "predictions.conll"
  path.write_bytes(files["predictions.conll"])
  assert ner.score_files(path, folder / "dev.tsv") == numbers
  with pytest.raises(UserError, match="sentence 1 differs from word 2 on: 'gu lo' in"):
    ner.score_files(folder / "train.tsv", folder / "dev.tsv")
  path.write_text("badefi O\n")
  with pytest.raises(UserError, match="has 1 sentences"):
    ner.score_files(path, folder / "dev.tsv")


# Tagging texts.


def test_tags_of_texts_are_where_they_say(folder, params):
  tokenizer, cfg = Tokenizer(folder), tasks.make(config(folder)).model
  texts = ["Badefi gu, lo!  Muni badefi.", "", "  ", ["badefi", "lo lo"], "gu " * 100, "ba、中国 @ba's"]
  results = ner.tag(cfg, params, tokenizer, texts, labels=LABELS, seq_length=32, batch_size=2)
  assert [result["text"] for result in results] == [*texts[:3], "badefi lo lo", *texts[4:]]
  assert results[1]["entities"] == results[2]["entities"] == []
  for result in results:
    for entity in result["entities"]:
      assert result["text"][entity["start"] : entity["end"]] == entity["text"]
      assert entity["type"] == "X"
      assert 0 < entity["score"] <= 1
  assert ner.tag(cfg, params, tokenizer, [], labels=LABELS) == []

  everything = {**params, "classifier": {**params["classifier"], "bias": jnp.array([0.0, 9.0, 0.0])}}  # always I-X
  results = ner.tag(cfg, everything, tokenizer, texts, labels=LABELS, seq_length=32, batch_size=2)
  assert [[(e["start"], e["end"]) for e in result["entities"]] for result in results] == [
    [(0, 28)], [], [], [(0, 12)], [(0, 299)], [(0, 11)],
  ]  # fmt: skip


def test_words_of_text_are_cut_as_the_word_rule_says():
  text = "Dr. Smith's caf\u00e9 cafe\u0301, 12,000 नमस्ते!"
  assert [text[start:end] for start, end in ner._words(text)[1]] == [
    "Dr", ".", "Smith", "'s", "caf\u00e9", "cafe\u0301", ",", "12,000", "नमस्ते", "!",
  ]  # fmt: skip
  assert ner._words(["a b", "c"]) == ("a b c", [(0, 3), (4, 5)])


# Against transformers.


def test_transformers_opens_the_export_and_says_the_same(folder, params, tmp_path):
  torch = pytest.importorskip("torch", reason="parity with transformers: pip install albert-jax[parity]")
  transformers = pytest.importorskip("transformers", reason="parity with transformers: pip install albert-jax[parity]")
  task = tasks.make(config(folder))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda p: np.asarray(p) + rng.normal(0, 0.1, p.shape).astype(np.float32), params)
  albert_jax.save(tmp_path / "export", task.model, params, vocabulary=task.vocabulary, extra=task.about,
                  architecture=task.architecture)  # fmt: skip
  assert json.loads((tmp_path / "export/config.json").read_text())["architectures"] == ["AlbertForTokenClassification"]
  theirs = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "export").eval()
  assert [theirs.config.id2label[i] for i in range(3)] == LABELS
  (batch,) = task.eval_batches(0, 1)
  labels = np.where((batch["labels"] >= 0) & (batch["weight"][:, None] > 0), batch["labels"], -100)
  with torch.no_grad():
    out = theirs(torch.tensor(batch["input_ids"]), attention_mask=torch.tensor(batch["attention_mask"]),
                 labels=torch.tensor(labels, dtype=torch.long))  # fmt: skip
  real = batch["attention_mask"] > 0
  np.testing.assert_allclose(
    heads.at_positions(task.model, "classifier", params, batch)[real], out.logits.numpy()[real], atol=2e-5
  )
  total, weight = task.sums(params, batch, None)["loss"]
  assert float(total / weight) == pytest.approx(float(out.loss), abs=1e-5)


def test_a_tagger_of_others_is_evaluated_with_its_own_labels(folder, params, tmp_path):
  """Exports keep their labels' order, and loading gives it back."""
  task = tasks.make(config(folder))
  albert_jax.save(tmp_path / "export", task.model, params, extra=task.about)
  assert convert.about(tmp_path / "export")["labels"] == LABELS
