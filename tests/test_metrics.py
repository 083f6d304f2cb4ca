"""Metrics against scipy, against definitions spelled out, and by hand."""

import numpy as np
import pytest
import scipy.stats

from albert_jax.errors import UserError
from albert_jax.tasks import metrics

GOLD, PREDICTED = np.array([0, 0, 1, 1, 1, 0, 1, 1]), np.array([0, 1, 1, 1, 0, 0, 1, 0])  # 3 hits, 2 missed, 1 false


def test_by_hand():
  assert metrics.accuracy(GOLD, PREDICTED) == 5 / 8
  assert metrics.f1(GOLD, PREDICTED) == pytest.approx(2 * 3 / (2 * 3 + 2 + 1))
  assert metrics.macro_f1(GOLD, PREDICTED) == pytest.approx((6 / 9 + 4 / 7) / 2)
  assert metrics.mcc(GOLD, PREDICTED) == pytest.approx((3 * 2 - 1 * 2) / np.sqrt(4 * 5 * 3 * 4))
  assert metrics.auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75  # the example of scikit-learn's manual
  # 5 of 7 right, classes as often in either: (5 * 7 - 2 * 2 - 2 * 2 - 3 * 3) / (7 * 7 - 17).
  gold, predicted = [0, 1, 2, 2, 1, 0, 2], [0, 2, 2, 1, 1, 0, 2]
  assert metrics.mcc(gold, predicted) == pytest.approx(0.5625)
  assert metrics.macro_f1(gold, predicted) == pytest.approx((1 + 0.5 + 2 / 3) / 3)


def test_against_the_definitions():
  rng = np.random.default_rng(0)
  for _ in range(20):
    a, b = rng.normal(size=30), np.round(rng.normal(size=30), 1)  # rounded: there are ties
    assert metrics.pearson(a, b) == pytest.approx(scipy.stats.pearsonr(a, b).statistic)
    assert metrics.spearman(b, a + b) == pytest.approx(scipy.stats.spearmanr(b, a + b).statistic)
    gold = rng.random(30) < 0.4
    pairs = [(x > y) + 0.5 * (x == y) for x in b[gold] for y in b[~gold]]
    assert metrics.auc(gold, b) == pytest.approx(np.mean(pairs))
    one_hot = np.eye(2)[gold.astype(int)]
    assert metrics.macro_auc(one_hot, np.stack([-b, b], axis=1)) == pytest.approx(np.mean(pairs))
    predicted = b > 0
    assert metrics.mcc(gold, predicted) == pytest.approx(np.corrcoef(gold, predicted)[0, 1])


def test_what_tells_nothing_is_zero_or_absent():
  constant, varied = np.ones(4), np.arange(4.0)
  assert (
    metrics.pearson(constant, varied) == metrics.pearson(varied, constant) == metrics.spearman(constant, varied) == 0
  )
  rounded = np.float32(2.785) + np.spacing(np.float32(2.785)) * varied.astype(
    np.float32
  )  # A model that learned nothing.
  assert metrics.pearson(varied, rounded) == metrics.spearman(varied, rounded) == 0
  assert metrics.pearson(varied, 1e4 + varied) == metrics.spearman(varied, 1e4 + varied) == pytest.approx(1)
  assert metrics.mcc([0, 1, 1], [1, 1, 1]) == 0
  assert metrics.f1([0, 0], [0, 0]) == 0
  assert metrics.auc([1, 1], [0.2, 0.3]) is None
  assert metrics.macro_auc(np.array([[1, 0], [1, 0]]), np.ones((2, 2))) is None
  assert metrics.macro_auc(np.array([[1, 1], [1, 0]]), np.array([[1, 1], [1, 0]])) == 1  # the first column is left out


def test_scores_that_are_no_numbers_are_refused():
  for metric in (metrics.pearson, metrics.spearman, metrics.auc):
    with pytest.raises(UserError, match="1 of 3 scores are not finite"):
      metric(np.array([1, 0, 1.0]), np.array([0.5, np.nan, 0.1]))


def test_against_the_library_that_defines_them():
  sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn comes with the extra [parity]")
  rng = np.random.default_rng(1)
  for classes in (2, 3, 5):
    gold, scores = rng.integers(0, classes, 60), rng.dirichlet(np.ones(classes), 60)
    predicted = scores.argmax(axis=1)
    assert metrics.accuracy(gold, predicted) == pytest.approx(sklearn.accuracy_score(gold, predicted))
    assert metrics.macro_f1(gold, predicted) == pytest.approx(sklearn.f1_score(gold, predicted, average="macro"))
    assert metrics.mcc(gold, predicted) == pytest.approx(sklearn.matthews_corrcoef(gold, predicted))
    one_hot = np.eye(classes, dtype=int)[gold]
    assert metrics.macro_auc(one_hot, scores) == pytest.approx(sklearn.roc_auc_score(one_hot, scores, average="macro"))
    assert metrics.f1(gold == 1, predicted == 1) == pytest.approx(sklearn.f1_score(gold == 1, predicted == 1))
  assert metrics.mcc([0, 1, 1], [1, 1, 1]) == sklearn.matthews_corrcoef([0, 1, 1], [1, 1, 1])
