"""Entity scores are those of seqeval: recorded cases, and where it is installed any case."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from albert_jax.tasks.ner import entities

# Random tags; precision, recall, F1 and accuracy of seqeval 1.2.2 in its default mode, then F1 of each type.
RECORDED = [
  ("O | B-A B-A I-x-y I-x-y O B-A O I-A O | O O O I-x-y O I-A I-x-y O I-A | O O B-x-y",
   "O | O B-A I-x-y I-x-y O B-A O I-A O | O O B-x-y B-x-y I-A I-A O B-x-y O | O O I-x-y",
   (0.666667, 0.6, 0.631579, 0.636364), {"A": 0.6, "x-y": 0.666667}),
  ("O I-A", "B-A I-A", (0.0, 0.0, 0.0, 0.5), {"A": 0.0}),
  ("B-A | E-B B-B S-A B-B E-A E-A E-B S-A S-B", "B-A | I-B B-B S-B B-B E-A E-A E-B S-A I-B",
   (0.9, 0.9, 0.9, 0.7), {"A": 0.888889, "B": 0.909091}),
  ("O B-A I-A E-A O B-B B-A | B-A | B-A E-B B-A I-B", "B-A B-A I-A I-A S-B B-B O | B-A | S-A E-B B-A I-B",
   (0.777778, 0.875, 0.823529, 0.583333), {"A": 0.8, "B": 0.857143}),
  ("I-B I-A I-A | I-B O O I-B O I-B I-A | O O I-B", "I-B I-B I-A | I-B O I-A I-B O I-B I-A | O O I-B",
   (0.625, 0.714286, 0.666667, 0.846154), {"A": 0.4, "B": 0.8}),
  ("B-A B-B I-A O I-B | O B-B B-B I-A | B-B I-A O O | B-B | O I-B I-B I-B B-A",
   "B-A I-B B-B O B-A | O B-B O I-A | B-B O B-B O | B-B | I-A O I-B I-B I-A",
   (0.583333, 0.583333, 0.583333, 0.526316), {"A": 0.6, "B": 0.571429}),
]  # fmt: skip


def sentences(text):
  return [part.split() for part in text.split(" | ")]


@pytest.mark.parametrize(("gold", "predicted", "expected", "by_type"), RECORDED)
def test_recorded_scores_of_seqeval(gold, predicted, expected, by_type):
  scores = entities.scores(sentences(gold), sentences(predicted))
  assert [scores[name] for name in ("precision", "recall", "f1", "token_accuracy")] == pytest.approx(expected, abs=1e-6)
  assert {name[3:]: value for name, value in scores.items() if name.startswith("f1_")} == pytest.approx(
    by_type, abs=1e-6
  )


TAGS = st.sampled_from(["O", "B-A", "I-A", "E-A", "S-A", "B-x-y", "I-x-y", "E-x-y", "S-x-y"])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.tuples(TAGS, TAGS), min_size=1, max_size=9), min_size=1, max_size=4))
def test_any_tags_score_as_in_seqeval(pairs):
  metrics = pytest.importorskip("seqeval.metrics", reason="the oracle of entity scores: pip install albert-jax[parity]")
  gold, predicted = ([[pair[i] for pair in sentence] for sentence in pairs] for i in (0, 1))
  scores = entities.scores(gold, predicted)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # It warns where nothing was there to find.
    expected = {
      "precision": metrics.precision_score(gold, predicted),
      "recall": metrics.recall_score(gold, predicted),
      "f1": metrics.f1_score(gold, predicted),
      "token_accuracy": metrics.accuracy_score(gold, predicted),
    }
  assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_bare_names_are_read_as_inside_and_bilou_as_bioes():
  assert entities.entities(["PER", "PER", "O", "LOC", "PER"]) == [("PER", 0, 2), ("LOC", 3, 4), ("PER", 4, 5)]
  bilou = ["B-A", "I-A", "L-A", "U-A", "U-A", "O"]
  assert entities.entities(bilou) == entities.entities(["B-A", "I-A", "E-A", "S-A", "S-A", "O"])
  assert entities.entities(bilou) == [("A", 0, 3), ("A", 3, 4), ("A", 4, 5)]


def test_nothing_to_find_scores_zero_and_not_nan():
  assert entities.scores([["O", "O"]], [["O", "O"]]) == {"precision": 0, "recall": 0, "f1": 0, "token_accuracy": 1}


def test_predictions_of_another_length_are_refused():
  with pytest.raises(ValueError, match="zip"):
    entities.scores([["O", "O"]], [["O"]])
