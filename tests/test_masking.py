"""Whole-word n-gram masking."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from albert_jax.data import rng
from albert_jax.data.pretraining import masking

MASK, ORDINARY = 4, np.arange(13, 500, dtype=np.int32)


def rows_of(words, length):
  """Rows `[CLS] words [SEP] padding`: (ids, is_start, is_special). `words` is a list of rows, lists of word lengths."""
  is_start = np.zeros((len(words), length), bool)
  is_special = np.ones((len(words), length), bool)
  for r, lengths in enumerate(words):
    starts = 1 + np.cumsum([0, *lengths])
    is_start[r, [0, *starts]] = True
    is_special[r, 1 : starts[-1]] = False
    is_start[r, min(starts[-1] + 1, length - 1)] = True
  ids = np.random.default_rng(0).integers(13, 500, is_start.shape).astype(np.int32)
  return np.where(is_special, 2, ids).astype(np.int32), is_start, is_special


def mask(words, length, *, rate=0.15, slots=None, ngram=3, seed=0, **kwargs):
  ids, is_start, is_special = rows_of(words, length)
  tokens = (~is_special).sum(axis=1)
  slots = slots or max(1, round(rate * length))
  budget = np.clip(np.rint(rate * tokens).astype(np.int64), 1, slots)
  keys = rng.keys(seed, "x", np.arange(len(words)))
  spans = masking.choose_spans(is_start, is_special, budget, keys, ngram=ngram, **kwargs)
  masked = masking.mask_tokens(ids, spans, keys, slots=slots, mask_id=MASK, ordinary_ids=ORDINARY)
  return ids, is_start, is_special, budget, spans, masked


@given(
  st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=30), min_size=1, max_size=12),
  st.integers(1, 5),
  st.floats(0.05, 0.9),
  st.integers(0, 2**32),
)
def test_properties(words, ngram, rate, seed):
  length = max(map(sum, words)) + 2
  ids, is_start, is_special, budget, _, masked = mask(words, length, rate=rate, ngram=ngram, seed=seed)
  for r, lengths in enumerate(words):
    used = masked.weights[r] == 1
    assert set(masked.weights[r].tolist()) <= {0.0, 1.0}
    count = int(used.sum())
    assert used[:count].all() and count <= budget[r]
    positions = masked.positions[r, :count]
    assert (np.diff(positions) > 0).all()  # ascending, none twice
    assert not is_special[r, positions].any()
    assert not masked.positions[r, count:].any() and not masked.labels[r, count:].any()
    # labels restore the original, and nothing else was touched
    restored = masked.ids[r].copy()
    restored[positions] = masked.labels[r, :count]
    np.testing.assert_array_equal(restored, ids[r])
    # whole words stay whole
    word = np.cumsum(is_start[r])
    assert set(np.flatnonzero(np.isin(word, word[positions]))) == set(positions.tolist())
    # the budget is used up as far as whole words allow
    free = [n for i, n in enumerate(lengths) if 1 + sum(lengths[:i]) not in positions]
    assert all(n > budget[r] - count for n in free)


def test_rates_over_many_rows():
  random = np.random.default_rng(0)
  words = [random.choice([1, 1, 1, 1, 2, 2, 3], 380).tolist() for _ in range(2000)]
  words = [row[: np.searchsorted(np.cumsum(row), 500)] for row in words]
  ids, _, is_special, budget, spans, masked = mask(words, 512)
  tokens = (~is_special).sum()
  assert abs(masked.weights.sum() / tokens - 0.15) < 0.002
  assert masked.weights.sum() == budget.sum()
  drawn = np.bincount(spans.drawn, minlength=4)[1:] / len(spans.drawn)
  np.testing.assert_allclose(drawn, [6 / 11, 3 / 11, 2 / 11], atol=0.01)
  rows, columns = np.nonzero(masked.weights)
  at = masked.positions[rows, columns]
  shown, label = masked.ids[rows, at], masked.labels[rows, columns]
  np.testing.assert_array_equal(label, ids[rows, at])
  is_random = (shown != MASK) & (shown != label)
  share = np.array([(shown == MASK).mean(), is_random.mean(), (shown == label).mean()])
  np.testing.assert_allclose(share, [0.8, 0.1, 0.1], atol=0.01)
  assert np.isin(shown[is_random], ORDINARY).all()
  # every place of a row is masked equally often
  where = np.bincount(at // 50, minlength=10)[:9]
  assert where.max() / where.min() < 1.1, where


def test_longer_ngrams_can_be_favoured():
  np.testing.assert_allclose(masking.ngram_probabilities(3, False), [2 / 11, 3 / 11, 6 / 11])
  *_, spans, _ = mask([[1] * 300] * 500, 302, favor_shorter=False)
  drawn = np.bincount(spans.drawn, minlength=4)[1:] / len(spans.drawn)
  np.testing.assert_allclose(drawn, [2 / 11, 3 / 11, 6 / 11], atol=0.02)


@pytest.mark.parametrize("ngram", [1, 2, 3])
def test_a_row_does_not_depend_on_its_batch(ngram):
  random = np.random.default_rng(1)
  words = [random.integers(1, 4, random.integers(1, 60)).tolist() for _ in range(64)]
  ids, is_start, is_special = rows_of(words, 182)
  keys = rng.keys(5, "x", np.arange(64))
  budget = np.maximum(1, (~is_special).sum(axis=1) // 6)

  def run(rows):
    spans = masking.choose_spans(is_start[rows], is_special[rows], budget[rows], keys[rows], ngram=ngram)
    return masking.mask_tokens(ids[rows], spans, keys[rows], slots=40, mask_id=MASK, ordinary_ids=ORDINARY)

  whole = run(slice(None))
  for i in range(0, 64, 7):
    part = run(slice(i, i + 7))
    for a, b in zip(whole, part, strict=True):
      np.testing.assert_array_equal(a[i : i + 7], b)


def test_slots_bound_the_masks():
  *_, masked = mask([[1] * 100] * 8, 102, rate=0.5, slots=20)
  assert (masked.weights.sum(axis=1) == 20).all()
