"""Held-out numbers that are not ratios of sums, in plain numpy; the definitions are scikit-learn's and scipy's."""

import numpy as np

from albert_jax.errors import UserError


def accuracy(gold, predicted) -> float:
  """The share of rows where two arrays [n] agree."""
  return float(np.mean(np.asarray(gold) == np.asarray(predicted)))


def f1(gold, predicted) -> float:
  """F1 of the positive class. Args: bool or 0/1 arrays [n]. 0 where nothing is positive in either."""
  gold, predicted = np.asarray(gold, bool), np.asarray(predicted, bool)
  found = gold.sum() + predicted.sum()
  return float(2 * (gold & predicted).sum() / found) if found else 0.0


def macro_f1(gold, predicted) -> float:
  """The mean F1 of the classes that occur in either of two int arrays [n]."""
  gold, predicted = np.asarray(gold), np.asarray(predicted)
  return float(np.mean([f1(gold == k, predicted == k) for k in np.union1d(gold, predicted)]))


def mcc(gold, predicted) -> float:
  """Matthews' correlation coefficient of two int arrays [n], of any number of classes; 0 where either is constant."""
  classes, numbers = np.unique(np.concatenate([gold, predicted]), return_inverse=True)
  g, p = (np.eye(len(classes))[part] for part in np.split(numbers, 2))
  return _correlation(g - g.mean(axis=0), p - p.mean(axis=0))


def pearson(gold, predicted) -> float:
  """The linear correlation of two float arrays [n]; 0 where either is constant and so tells nothing."""
  gold, predicted = (finite(x) for x in (gold, predicted))
  if np.ptp(gold) == 0 or np.ptp(predicted) == 0:
    return 0.0
  return _correlation(gold - gold.mean(), predicted - predicted.mean())


def spearman(gold, predicted) -> float:
  """The correlation of the ranks of two float arrays [n]; equal values share the mean of their ranks."""
  return pearson(ranks(finite(gold)), ranks(finite(predicted)))


def auc(gold, scores) -> float | None:
  """The area under the ROC curve: how often a positive row scores above a negative one, ties counting half.

  Args: gold: bool or 0/1 [n]. scores: float [n]. Returns: None where there are no positive or no negative rows.
  """
  gold, scores = np.asarray(gold, bool), finite(scores)
  positive, negative = gold.sum(), (~gold).sum()
  if not positive or not negative:
    return None
  return float((ranks(scores)[gold].sum() - positive * (positive + 1) / 2) / (positive * negative))


def macro_auc(gold, scores) -> float | None:
  """The mean over classes of each one's `auc` against the others. Args: gold: 0/1 [n, C]. scores: float [n, C].

  Returns: None where no class has both positive and negative rows; classes that have not are left out.
  """
  found = [auc(gold[:, k], scores[:, k]) for k in range(scores.shape[1])]
  found = [value for value in found if value is not None]
  return float(np.mean(found)) if found else None


def ranks(values):
  """The ranks of an array [n] from 1, as floats; equal values share their mean."""
  _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
  last = np.cumsum(counts)
  return (last - (counts - 1) / 2)[place]


def finite(values):
  """float64 array of `values`. Raises: UserError where one is NaN or infinite, since no metric of it means much."""
  values = np.asarray(values, np.float64)
  if broken := int(np.sum(~np.isfinite(values))):
    raise UserError(
      f"{broken} of {values.size} scores are not finite numbers; the model, or the file of predictions they come from, "
      "is broken: look at its training loss, or make the file again"
    )
  return values


def _correlation(a, b):
  """Of two centred arrays; 0 where either is all zeros."""
  size = np.sqrt(np.sum(a * a)) * np.sqrt(np.sum(b * b))
  return float(np.clip(np.sum(a * b) / size, -1, 1)) if size > 0 else 0.0
