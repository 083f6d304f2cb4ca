"""Extractive summaries: labels, what counts in the loss, which sentences are chosen, and what is written."""

import json
import logging

import jax
import made_up
import numpy as np
import pytest

from albert_jax import tasks
from albert_jax.configs import summarize as summarize_config
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.tasks.summarize import task as summarize

DOCUMENT = ["Badefi gulo muni.", "Lo lo ba.", "Kadefi ba muni lo gu.", "Ba gu."]
ROWS = [
  {"document": DOCUMENT, "summary": "badefi gulo muni, and ba gu"},
  {"document": "Lo lo ba. Kadefi ba.\nBa gu lo", "summary": ["kadefi ba", "ba gu lo"]},
  {"document": ["Ba.", "Gu."], "labels": [0, 1]},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("summaries")
  made_up.vocabulary(folder)
  for name in ("train", "dev"):
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
  return folder


def config(folder, **overrides):
  config = summarize_config.get_config("tiny")
  config.model.update({"vocab_size": 400, "hidden_size": 16, "embedding_size": 8, "num_hidden_layers": 1,
                       "intermediate_size": 16, "num_attention_heads": 2, "max_position_embeddings": 64})  # fmt: skip
  config.data.update({"dataset": str(folder), "spm": str(folder), "seq_length": 64})
  config.batch_size = 4
  config.update_from_flattened_dict(overrides)
  return config


@pytest.fixture(scope="module")
def task(folder):
  return tasks.make(config(folder))


@pytest.fixture(scope="module")
def params(task):
  return jax.jit(task.init)(jax.random.key(0))


def test_sentences_and_labels_are_found_or_given(folder):
  split_data = summarize.read(config(folder).data, "train", 3)
  assert split_data.documents == [DOCUMENT, ["Lo lo ba.", "Kadefi ba.", "Ba gu lo"], ["Ba.", "Gu."]]
  assert split_data.references == ["badefi gulo muni, and ba gu", "kadefi ba\nba gu lo", "Gu."]
  assert split_data.labels == [[1, 0, 0, 1], [0, 1, 1], [0, 1]]
  assert summarize.read(config(folder).data, "train", 1).labels[0] == [1, 0, 0, 0]


ERRORS = {
  "no summary": ({"document": "Ba."}, "line 1 has no summary in 'summary' and no labels in 'labels'"),
  "too few labels": ({"document": DOCUMENT, "labels": [1]}, "one for each of the document's 4 sentences"),
  "odd labels": ({"document": ["a"], "labels": [2]}, "a list of 0 and 1"),
  "no text": ({"document": 3, "summary": "a"}, "'document' is neither a text nor a list"),
  "no texts": ({"document": [3], "summary": "a"}, "'document' is neither a text nor a list"),
}


def test_the_advice_for_a_missing_column_names_this_tasks_field(folder, tmp_path):
  (tmp_path / "train.jsonl").write_text('{"text": "A."}')
  with pytest.raises(UserError, match=r"fields document, .*choose with --config\.data\.document_field=…\)$"):
    summarize.read(config(folder, **{"data.dataset": str(tmp_path)}).data, "train", 3)


@pytest.mark.parametrize("name", ERRORS)
def test_what_is_wrong_is_one_error_that_says_where(folder, tmp_path, name):
  row, message = ERRORS[name]
  (tmp_path / "train.jsonl").write_text(json.dumps(row))
  with pytest.raises(UserError, match=message):
    summarize.read(config(folder, **{"data.dataset": str(tmp_path)}).data, "train", 3)


@pytest.mark.parametrize("row", [
  {}, {"summary": None}, {"summary": float("nan"), "labels": None}, {"labels": -1}, {"summary": ""},
])  # fmt: skip
def test_a_split_without_summaries_has_answers_and_no_numbers(folder, tmp_path, row):
  lines = [json.dumps({"document": DOCUMENT} | row), json.dumps({"document": ["Ba.", "Gu."]})]
  (tmp_path / "test.jsonl").write_text("\n".join(lines))
  hidden = tasks.make(config(folder, **{"data.validation_split": str(tmp_path / "test.jsonl"), "best": ""}))
  assert not hidden.has_labels
  assert hidden.baselines == {}
  numbers, files = hidden.score({"score": [np.linspace(0, 1, 64)] * 2})
  assert numbers == {}
  assert [set(json.loads(line)) for line in files["summaries.jsonl"].splitlines()] == [{"summary", "sentences"}] * 2
  with pytest.raises(UserError, match=r"test\.jsonl line 1.* 'labels'"):
    summarize.read(config(folder).data, str(tmp_path / "test.jsonl"), 3)


def test_a_json_list_in_a_cell_is_a_list(folder, tmp_path):
  (tmp_path / "a.csv").write_text('document,labels\n"[""Ba."", ""Gu.""]","[0, 1]"\n')
  split = summarize.read(config(folder).data, str(tmp_path / "a.csv"), 3)
  assert (split.documents, split.labels, split.references) == ([["Ba.", "Gu."]], [[0, 1]], ["Gu."])


def test_what_is_odd_is_counted(folder, tmp_path, caplog):
  caplog.set_level(logging.INFO, "albert_jax")
  rows = [{"document": "", "summary": "a"}, {"document": "中国。", "summary": "中国。"}]
  (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  summarize.read(config(folder, **{"data.dataset": str(tmp_path)}).data, "train", 3)
  output = caplog.text
  assert "train: 1 of 2 documents are empty" in output
  assert "train: 2 of 2 documents have no sentence that belongs into the summary" in output
  assert "train: 1 of 2 summaries have no word of a-z" in output


def test_the_loss_is_that_of_each_sentence_at_its_own_cls(task, params):
  (batch,) = task.eval_batches(0, 1)
  row = int(np.flatnonzero(batch["row"] == 2)[0])
  cls = np.flatnonzero(batch["input_ids"][row] == task.vocabulary.cls_id)
  assert batch["labels"][row, cls].tolist() == [0, 1]
  assert (np.delete(batch["labels"][row], cls) == -1).all()
  assert batch["token_type_ids"][row, cls].tolist() == [0, 1]
  total, weight = task.sums(params, batch, None)["loss"]
  assert float(weight) == 4 + 3 + 2
  probability = np.asarray(task.outputs(params, batch)["score"])
  expected = sum(
    -np.log(probability[r, p] if batch["labels"][r, p] else 1 - probability[r, p])
    for r, p in np.argwhere(batch["labels"] >= 0) if batch["weight"][r]
  )  # fmt: skip
  assert float(total) == pytest.approx(expected, rel=1e-5)
  assert float(task.terms(batch)["loss"]) == pytest.approx(1 / 9)


def test_the_best_sentences_are_chosen_in_the_order_of_the_text():
  assert summarize.select(["a", "b", "c", "d"], [0.1, 0.9, 0.3, 0.9], 2, False) == [1, 3]
  assert summarize.select(["a", "b", "c"], [0.5, 0.5, 0.5], 2, True) == [0, 1]
  assert summarize.select([], [], 2, True) == []
  repeated = ["a b c d", "x", "b c d e"]
  assert summarize.select(repeated, [0.9, 0.1, 0.8], 2, False) == [0, 2]
  assert summarize.select(repeated, [0.9, 0.1, 0.8], 2, True) == [0, 1]


def test_scores_and_the_file_of_summaries(folder, task):
  (batch,) = task.eval_batches(0, 1)
  perfect = {row: np.where(labels == 1, 0.9, 0.1) for row, labels in zip(batch["row"], batch["labels"], strict=True)}
  numbers, files = summarize.score(
    summarize.read(config(folder).data, "validation", 3), _encoded(folder), 2, True,
    {"score": [perfect[i] for i in range(3)]},
  )  # fmt: skip
  lines = [json.loads(line) for line in files["summaries.jsonl"].decode().splitlines()]
  assert [line["sentences"] for line in lines] == [[0, 3], [1, 2], [0, 1]]
  assert lines[0]["summary"] == "Badefi gulo muni. Ba gu."
  assert lines[0]["rouge1"] == pytest.approx(10 / 11, abs=1e-6)
  assert numbers["rouge1"] == pytest.approx(np.mean([line["rouge1"] for line in lines]), abs=1e-6)
  assert set(numbers) == set(task.baselines) == {"rouge1", "rouge2", "rougeL"}


def _encoded(folder):
  split = summarize.read(config(folder).data, "validation", 3)
  return summarize._encode(split.documents, Tokenizer(folder), 64, split.labels)[0]


def test_long_documents_lose_no_sentence(folder, params, task):
  documents = [["ba gu lo"] * 40, ["bugu " * 100, "ba"]]
  encoded, cut = summarize._encode(documents, Tokenizer(folder), 32, [[1] * 40, [0, 1]])
  assert cut == 1
  assert encoded.by_item(encoded.rows.tokens["labels"]) == [[1] * 40, [0, 1]]
  assert max(map(len, encoded.rows.tokens["input_ids"])) <= 32
  texts = [" ".join(["Ba gu lo."] * 40), ["One.", "Two.", "Three.", "Four."], ""]
  results = summarize.summarize(
    task.model, params, task.vocabulary, texts, sentences=2, seq_length=32, trigram_blocking=False
  )
  assert [len(result["sentences"]) for result in results] == [2, 2, 0]
  for result in results:
    assert result["summary"] == " ".join(part["text"] for part in result["sentences"])
    assert all(0 < part["score"] < 1 for part in result["sentences"])
  indices = [part["index"] for part in results[1]["sentences"]]
  assert indices == sorted(indices)
  blocked = summarize.summarize(task.model, params, task.vocabulary, texts[:1], sentences=2, seq_length=32)
  assert len(blocked[0]["sentences"]) == 1  # All others repeat it.
