"""From scores to texts: the best spans over all windows, silence, and questions about passages of any length."""

import math
from typing import ClassVar

import made_up
import numpy as np
import pytest
from small_models import random_params

import albert_jax
from albert_jax.data.finetuning import batching, squad
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.tasks.squad import answers as squad_answers
from albert_jax.tasks.squad import heads as squad_heads
from albert_jax.tasks.squad.answers import Search

SIZES = {"seq_length": 40, "doc_stride": 8, "max_query_length": 10}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return Tokenizer(made_up.vocabulary(tmp_path_factory.mktemp("vocabulary")))


def random_words(count, seed=0):
  rng = np.random.default_rng(seed)
  return ["".join(rng.choice(made_up.SYLLABLES, rng.integers(1, 4))) for _ in range(count)]


def windows_of(tokenizer, *contexts, search):
  questions = [squad.Question(f"q{i}", "what is it", context, (), True) for i, context in enumerate(contexts)]
  return squad_answers.encode(questions, tokenizer, search)


def random_scores(windows, count, seed, depth=6):
  """Whole logits [L] of each row, and what a head makes of them."""
  rng = np.random.default_rng(seed)
  rows, scores = [], {name: [] for name in ("start_index", "start_score", "end_index", "end_score", "null")}
  for row in windows.rows.tokens["input_ids"][:count]:
    start, end = rng.normal(size=(2, len(row)))
    s, e = np.argsort(-start)[:depth], np.argsort(-end)[:depth]
    rows.append((start, end))
    for name, value in zip(scores, (s, start[s], e[None], end[e][None], start[0] + end[0]), strict=True):
      scores[name].append(value)
  return rows, scores


@pytest.mark.parametrize("seed", range(5))
def test_best_spans_against_trying_all(tokenizer, seed):
  """The rules of the official scripts, one span at a time."""
  search = Search(**SIZES, max_answer_length=7, n_best=5)
  windows = windows_of(tokenizer, " ".join(random_words(40, seed)), search=search)
  head, count = squad_heads.get("span"), len(windows.rows)
  assert count > 4
  logits, scores = random_scores(windows, count, seed)
  answers, odds = squad_answers.best(head, windows, scores, 0, np.arange(count), search)

  context, spans, tried = windows.questions[0].context, windows.spans[0], []
  for w, (start, end) in enumerate(logits):
    first, offset, size = windows.first[w], windows.offset[w], windows.size[w]
    for s in scores["start_index"][w]:
      for e in scores["end_index"][w][0]:
        if not (offset <= s <= e < offset + size and e - s + 1 <= 7):
          continue
        token = s - offset + first
        contexts = [  # the original's score of each window; the first of equals is taken
          min(token - f, f + n - 1 - token) + 0.01 * n if f <= token < f + n else -1
          for f, n in zip(windows.first, windows.size, strict=True)
        ]
        if contexts.index(max(contexts)) == w:
          place = squad.characters(context, spans, token, e - offset + first)
          tried.append((start[s] + end[e], context[slice(*place)], place))
  tried.sort(key=lambda candidate: -candidate[0])
  texts = list(dict.fromkeys(text for _, text, _ in tried))[:5]
  null = min(start[0] + end[0] for start, end in logits)
  assert [a["text"] for a in answers if a["text"]] == texts and len(answers) == 6
  assert [a["score"] for a in answers] == sorted((a["score"] for a in answers), reverse=True)
  assert answers[[a["text"] for a in answers].index("")]["score"] == pytest.approx(null)
  assert odds == pytest.approx(null - tried[0][0])
  assert sum(a["probability"] for a in answers) == pytest.approx(1)
  for a in answers:
    assert context[a["start"] : a["end"]] == a["text"]
    assert a["probability"] == pytest.approx(
      math.exp(a["score"]) / sum(math.exp(b["score"]) for b in answers)
    )  # fmt: skip


def test_the_end_belongs_to_its_start(tokenizer):
  """The beam head: each start has ends of its own."""
  search = Search(**SIZES)
  windows = windows_of(tokenizer, " ".join(random_words(6)), search=search)
  offset = windows.offset[0]
  scores = {
    "start_index": [offset + np.array([0, 3])], "start_score": [np.array([-1.0, -2.0])],
    "end_index": [offset + np.array([[1, -1], [3, 5]])], "end_score": [np.array([[-5.0, -0.1], [-0.5, -1.0]])],
    "null": [np.float32(0.25)],
  }  # fmt: skip
  answers, odds = squad_answers.best(squad_heads.get("beam"), windows, scores, 0, [0], search)
  context, spans = windows.questions[0].context, windows.spans[0]
  expected = [(3, 3), (3, 5), (0, 1)]
  assert [(a["start"], a["end"]) for a in answers] == [squad.characters(context, spans, *span) for span in expected]
  assert [a["score"] for a in answers] == [-2.5, -3.0, -6.0]
  assert odds == 0.25  # Of its own part, whatever the spans are.


class TestSilence:
  texts, odds = {"a": "x", "b": "y", "c": ""}, {"a": 0.5, "b": -0.5, "c": -3.0}

  @pytest.mark.parametrize(("no_answer", "threshold", "texts"), [
    (True, 0.0, ["", "y", ""]), (True, 0.5, ["x", "y", ""]), (True, -1, ["", "", ""]), (False, -1, ["x", "y", ""])
  ])  # fmt: skip
  def test_threshold(self, no_answer, threshold, texts):
    search = Search(no_answer=no_answer, null_threshold=threshold)
    assert list(squad_answers.decide(self.texts, self.odds, search).values()) == texts

  @pytest.mark.parametrize("head", squad_heads.HEADS)
  def test_a_passage_without_text(self, tokenizer, head):
    search = Search(**SIZES)
    windows = windows_of(tokenizer, "", " ", search=search)
    rows = windows.rows.tokens["input_ids"]
    scores = {
      "start_index": [np.array([0, 1])] * 2, "start_score": [np.zeros(2)] * 2, "end_index": [np.array([[0, 1]])] * 2,
      "end_score": [np.zeros((1, 2))] * 2, "null": [np.float32(1)] * 2,
    }  # fmt: skip
    texts, odds, lists = squad_answers.predict(squad_heads.get(head), windows, scores, search)
    assert texts == {"q0": "", "q1": ""} and len(rows) == 2
    assert all(math.isfinite(value) for value in odds.values())
    assert [x["text"] for x in lists["q0"]] == ([""] if head == "span" else [])

  def test_settings_that_cannot_be(self):
    with pytest.raises(UserError, match=r"task\.n_best=0 must be 1 or more"):
      Search(n_best=0)
    with pytest.raises(
      UserError, match=r"data\.seq_length=40 leaves no room .* task\.max_query_length=38 tokens; lower"
    ):
      Search(seq_length=40, max_query_length=38)


@pytest.fixture(scope="module", params=sorted(squad_heads.HEADS))
def model(request, tokenizer):
  cfg = albert_jax.AlbertConfig(
    vocab_size=tokenizer.vocab_size, embedding_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
    intermediate_size=16, max_position_embeddings=64, remat="none",
  )  # fmt: skip
  return cfg, random_params(cfg, (), {squad_heads.get(request.param).part: 2}), tokenizer


class TestAnswer:
  size: ClassVar = {"seq_length": 32, "batch_size": 4}

  def test_many_at_once_are_as_each_alone(self, model):
    items = [{"question": "what ?", "context": " ".join(random_words(count, count))} for count in (3, 60, 1, 0)]
    batched = squad_answers.answer(*model, items, top_k=3, **self.size)
    for item, result in zip(items, batched, strict=True):
      [alone] = squad_answers.answer(*model, [item], top_k=3, **self.size)
      assert [a["text"] for a in alone["answers"]] == [a["text"] for a in result["answers"]]
      assert alone["no_answer"] == pytest.approx(result["no_answer"], rel=1e-4)
      assert len(result["answers"]) <= 3 and 0 <= result["no_answer"] <= 1
      for a in result["answers"]:
        assert item["context"][a["start"] : a["end"]] == a["text"] and 0 < a["score"] <= 1
      assert result["answer"] == (
        "" if result["no_answer"] > 0.5 or not item["context"] else result["answers"][0]["text"]
      )
    assert batched[1]["answers"][0]["end"] <= len(items[1]["context"])

  def test_few_programs_are_compiled(self, model):
    squad_answers._run.clear_cache()
    before = squad_answers._run._cache_size()
    for count in (2, 9, 15, 20, 30, 40, 60, 61):
      items = [{"question": "a", "context": " ".join(random_words(count, count))}]
      squad_answers.answer(*model, items, top_k=min(count, 20), max_answer_length=count, doc_stride=count, **self.size)
    sizes = [size for size in batching.SIZES if size <= 4]
    lengths = [length for length in batching.FINE_LENGTHS if length <= 32]
    assert 0 < squad_answers._run._cache_size() - before <= len(sizes) * len(lengths)

  def test_a_model_that_always_answers(self, model):
    [result] = squad_answers.answer(*model, [{"question": "a", "context": "bade fo"}], no_answer=False, **self.size)
    assert result["no_answer"] is None and result["answer"] == result["answers"][0]["text"] != ""
    assert sum(a["score"] for a in result["answers"]) <= 1 + 1e-6

  def test_a_long_passage_is_read_to_its_end(self, model):
    """An answer may come from any window."""
    cfg, params, tokenizer = model
    words = random_words(300, 3)
    [result] = squad_answers.answer(
      cfg, params, tokenizer, [{"question": "a", "context": " ".join(words)}], top_k=30, **self.size
    )
    starts = [a["start"] for a in result["answers"]]
    assert len(starts) == 30 and max(starts) > 600

  def test_what_it_cannot_answer(self, model):
    cfg, params, tokenizer = model
    assert squad_answers.answer(cfg, params, tokenizer, []) == []
    with pytest.raises(UserError, match=r'item 1 is .* expected \{"question": text, "context": text\}'):
      squad_answers.answer(cfg, params, tokenizer, [{"question": "a"}])
    with pytest.raises(UserError, match="this checkpoint has no head that answers questions"):
      squad_answers.answer(cfg, {"embeddings": {}}, tokenizer, [{"question": "a", "context": "b"}])
