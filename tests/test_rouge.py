"""ROUGE is that of rouge-score: recorded scores, and where it is installed those of any texts."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from albert_jax.tasks.summarize import rouge

# Of rouge-score 0.1.2, without stemming; reference and summary are from random words.
RECORDED = [
  ("Cat's 12,5 don't cat don't the x sat Cat's x a-b été a-b the cat Cat's sat cat cat sat cat a-b Cat's",
   "12,5 中国 12,5 the 12,5", {"rouge1": 0.15, "rouge2": 0.052632, "rougeL": 0.15}),
  ("don't cat Cat's Cat's 12,5 U.S. cat 中国 the cat été Cat's U.S. x sat été cat",
   "Cat's x x cat cat 中国 cat été 12,5 the 12,5 sat sat été 12,5 don't 12,5 cat 12,5 中国 the",
   {"rouge1": 0.612245, "rouge2": 0.297872, "rougeL": 0.367347}),
  ("the U.S. Cat's été U.S. U.S. U.S. été a-b a-b 12,5 don't don't 12,5 the Cat's U.S. Cat's 12,5 don't sat a-b don't",
   "sat a-b x 12,5 cat the 12,5 don't sat sat a-b the", {"rouge1": 0.482759, "rouge2": 0.285714, "rougeL": 0.413793}),
]  # fmt: skip


@pytest.mark.parametrize(("reference", "summary", "expected"), RECORDED)
def test_recorded_scores_of_rouge_score(reference, summary, expected):
  assert rouge.scores(reference, summary) == pytest.approx(expected, abs=1e-6)


TEXT = st.lists(st.sampled_from(["the", "cat", "Cat's", "U.S.", "don't", "中国", "12,5", "\n", "été"])).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(TEXT, TEXT)
def test_any_texts_score_as_in_rouge_score(reference, summary):
  scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="the oracle of ROUGE: pip install albert-jax[parity]")
  expected = scorer.RougeScorer(["rouge1", "rouge2", "rougeL"]).score(reference, summary)
  assert rouge.scores(reference, summary) == pytest.approx({k: v.fmeasure for k, v in expected.items()}, abs=1e-12)


def test_without_words_the_score_is_zero():
  assert rouge.scores("", "a b") == rouge.scores("中国", "中国") == {"rouge1": 0, "rouge2": 0, "rougeL": 0}


@given(st.text("abc", max_size=12), st.text("abc", max_size=12))
def test_longest_common_subsequence_is_that_of_the_table(a, b):
  table = {(i, j): 0 for i in range(len(a) + 1) for j in range(len(b) + 1)}
  for i, j in itertools.product(range(len(a)), range(len(b))):
    table[i + 1, j + 1] = table[i, j] + 1 if a[i] == b[j] else max(table[i, j + 1], table[i + 1, j])
  assert rouge.longest_common(a, b) == table[len(a), len(b)]


SENTENCES = ["the cat sat", "on a mat today", "the dog", "on a mat"]


def test_the_oracle_adds_sentences_while_they_help():
  assert rouge.oracle(SENTENCES, "on a mat the cat sat", 3) == [0, 3]
  assert rouge.oracle(SENTENCES, "on a mat the cat sat", 1) in ([0], [3])
  assert rouge.oracle(SENTENCES, "nothing in common", 3) == []
  assert rouge.oracle([], "the cat", 3) == []


def test_the_oracle_takes_the_best_sentence_first():
  def value(i):
    scores = rouge.scores("a mat for the dog", SENTENCES[i])
    return scores["rouge1"] + scores["rouge2"]

  assert rouge.oracle(SENTENCES, "a mat for the dog", 1) == [max(range(4), key=value)]
