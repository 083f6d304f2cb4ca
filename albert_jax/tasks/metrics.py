"""Metrics that are not ratios of sums. Correlations and ranks come from scipy, a dependency of JAX.

The others are a few lines of numpy each, by the definitions of scikit-learn, which would be an additional dependency.
scipy is imported in functions: its import takes a second, and training needs it only at the first evaluation.
"""

from typing import Any

import numpy as np

from albert_jax.errors import UserError

CONSTANT = 2e-6  # The relative spread of values that differ by rounding: 16 units in the last place of float32.


def accuracy(gold: Any, predicted: Any) -> float:
  """Returns the share of rows where two arrays [n] agree."""
  return float(np.mean(np.asarray(gold) == np.asarray(predicted)))


def f1(gold: Any, predicted: Any) -> float:
  """Returns F1 of the positive class of two bool or 0/1 arrays [n]; 0 if neither has a positive row."""
  gold, predicted = np.asarray(gold, bool), np.asarray(predicted, bool)
  total = gold.sum() + predicted.sum()
  return float(2 * (gold & predicted).sum() / total) if total else 0.0


def macro_f1(gold: Any, predicted: Any) -> float:
  """Returns the mean F1 of the classes that occur in either of two int arrays [n]."""
  gold, predicted = np.asarray(gold), np.asarray(predicted)
  return float(np.mean([f1(gold == k, predicted == k) for k in np.union1d(gold, predicted)]))


def mcc(gold: Any, predicted: Any) -> float:
  """Returns Matthews' correlation coefficient of two int arrays [n], of any number of classes.

  Args:
    gold: the right classes.
    predicted: those of a model.

  Returns:
    the coefficient; 0 where either array is constant.
  """
  classes, numbers = np.unique(np.concatenate([gold, predicted]), return_inverse=True)
  g, p = (np.eye(len(classes))[part] for part in np.split(numbers, 2))
  g, p = g - g.mean(axis=0), p - p.mean(axis=0)
  size = np.sqrt(np.sum(g * g)) * np.sqrt(np.sum(p * p))
  return float(np.clip(np.sum(g * p) / size, -1, 1)) if size > 0 else 0.0


def pearson(gold: Any, predicted: Any) -> float:
  """Returns the correlation of two float arrays [n]; 0 if either is constant, but for rounding."""
  from scipy import stats

  gold, predicted = finite(gold), finite(predicted)
  if len(gold) < 2 or _is_constant(gold) or _is_constant(predicted):
    return 0.0
  return float(stats.pearsonr(gold, predicted).statistic)


def spearman(gold: Any, predicted: Any) -> float:
  """Returns the correlation of the ranks of two float arrays [n]; equal values share the mean of their ranks."""
  from scipy import stats

  gold, predicted = finite(gold), finite(predicted)
  if len(gold) < 2 or _is_constant(gold) or _is_constant(predicted):
    return 0.0
  return pearson(stats.rankdata(gold), stats.rankdata(predicted))


def _is_constant(values):
  """Returns whether values differ by the rounding of float32 at most: the outputs of a model that ignores its input."""
  return np.ptp(values) <= CONSTANT * np.max(np.abs(values))


def auc(gold: Any, scores: Any) -> float | None:
  """Computes the area under the ROC curve: the share of pairs in which a positive row scores above a negative one.

  Args:
    gold: bool or 0/1 [n].
    scores: float [n].

  Returns:
    None where there are no positive or no negative rows.
  """
  from scipy import stats

  gold, scores = np.asarray(gold, bool), finite(scores)
  positive, negative = gold.sum(), (~gold).sum()
  if not positive or not negative:
    return None
  ranks = stats.rankdata(scores)
  return float((ranks[gold].sum() - positive * (positive + 1) / 2) / (positive * negative))


def macro_auc(gold: np.ndarray, scores: np.ndarray) -> float | None:
  """Computes the mean over classes of each one's `auc` against the others.

  Args:
    gold: 0/1 [n, C].
    scores: float [n, C].

  Returns:
    None where no class has both positive and negative rows; classes that have not are left out.
  """
  areas = [auc(gold[:, k], scores[:, k]) for k in range(scores.shape[1])]
  defined = [area for area in areas if area is not None]
  return float(np.mean(defined)) if defined else None


def finite(values: Any) -> np.ndarray:
  """Returns `values` as float64; raises UserError if one is NaN or infinite."""
  values = np.asarray(values, np.float64)
  if broken := int(np.sum(~np.isfinite(values))):
    raise UserError(
      f"{broken} of {values.size} scores are not finite numbers; the model, or the file of predictions they come from, "
      "is broken: look at its training loss, or make the file again"
    )
  return values
