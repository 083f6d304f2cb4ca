"""Whole-word n-gram masking of a batch at once (ALBERT, section 3.1; the original's `create_masked_lm_predictions`)."""

import typing

import numpy as np

from albert_jax.data import rng
from albert_jax.data.records import ragged

_BLOCK = 32  # tries drawn at a time


class Spans(typing.NamedTuple):
  """Runs of whole words in a batch, in no particular order; int64 arrays, one entry a run.

  Attributes:
    row: the row it is in.
    start, stop: its columns.
    words: how many words it has.
    drawn: how many it was meant to have, before it was shortened to what was left of the row's budget.
  """

  row: np.ndarray
  start: np.ndarray
  stop: np.ndarray
  words: np.ndarray
  drawn: np.ndarray


class Masked(typing.NamedTuple):
  """What masking made of a batch.

  Attributes:
    ids: int32 array [B, L], the input with replacements.
    positions: int32 array [B, M], ascending; 0 where unused.
    labels: int32 array [B, M], the original ids there; 0 where unused.
    weights: float32 array [B, M], 1 where used.
  """

  ids: np.ndarray
  positions: np.ndarray
  labels: np.ndarray
  weights: np.ndarray


def ngram_probabilities(ngram, favor_shorter=True):
  """p(n) for n = 1 … ngram: proportional to 1/n, or the same from behind."""
  p = 1 / np.arange(1, ngram + 1)
  p /= p.sum()
  return p if favor_shorter else p[::-1]


def choose_spans(is_start, is_special, budget, keys_B, *, ngram, favor_shorter=True):
  """Chooses which words to mask.

  As in the original: again and again a length n is drawn and a random run of n words; a run that meets a masked word is
  refused; the last runs are shortened to what is left of the budget, and a word that is longer than that is left out.
  Unlike there, a refused run is drawn anew with the same n, so that the lengths really follow p(n), and runs do not
  reach over special tokens.

  Args:
    is_start: bool array [B, L], where words start; also True at every special token and at the first padding.
    is_special: bool array [B, L], special tokens and padding, which are never masked.
    budget: int64 array [B], how many tokens to mask; no row gets more.
    keys_B: uint64 array [B].
    ngram: the most words in a run.
    favor_shorter: see ngram_probabilities.

  Returns:
    Spans. Words are in them whole or not at all.
  """
  length = is_start.shape[1]
  flat_starts = np.flatnonzero(is_start)
  count = is_start.sum(axis=1)
  base = np.cumsum(count) - count
  taken = np.ones(len(flat_starts) + ngram, bool)
  taken[: len(flat_starts)] = is_special.ravel()[flat_starts]
  word_at = np.append(flat_starts, np.full(ngram, is_start.size))

  # How often a row tries depends on nothing but the row, so that it is the same in any batch.
  tries = 2 * budget + 8
  edges = np.ceil(np.cumsum(ngram_probabilities(ngram, favor_shorter)) * 2**32).astype(np.uint64)[:-1]
  random = rng.bits(~keys_B, int(budget.max(initial=0))) >> np.uint64(32)
  lengths = 1 + (random[:, :, None] >= edges).sum(axis=2)

  left = budget.copy()
  accepted = np.zeros(len(budget), np.int64)  # runs so far, which is also the next of a row's own list of lengths
  rows = np.flatnonzero(left > 0)
  spans = []
  for attempt in range(int(tries.max(initial=0))):
    rows = rows[(left[rows] > 0) & (tries[rows] > attempt)]
    if not len(rows):
      break
    if attempt % _BLOCK == 0:
      place = rng.below(rng.bits(keys_B, _BLOCK, attempt), count[:, None]) + base[:, None]
    word = place[rows, attempt % _BLOCK]
    n = drawn = lengths[rows, accepted[rows]]
    first = word_at[word]
    size = word_at[word + n] - first
    room = left[rows]
    for _ in range(ngram - 1):
      too_long = (size > room) & (n > 1)
      if not too_long.any():
        break
      n = n - too_long
      size = word_at[word + n] - first
    is_free = (size <= room) & ~taken[word]
    for k in range(1, ngram):
      is_free &= (n <= k) | ~taken[word + k]
    word, n, first, size, drawn, chosen = (x[is_free] for x in (word, n, first, size, drawn, rows))
    for k in range(ngram):
      taken[word[n > k] + k] = True
    left[chosen] -= size
    accepted[chosen] += 1
    spans.append((chosen, first, size, n, drawn))

  # A few rows are left with a token or two that no try hit. For them, all words are tried in a random order.
  for row in np.flatnonzero(left > 0):
    words = np.arange(base[row], base[row] + count[row])
    words = words[np.argsort(rng.bits(keys_B[row : row + 1] ^ np.uint64(1), len(words))[0])]
    for word in words[~taken[words]]:
      size = word_at[word + 1] - word_at[word]
      if size <= left[row]:
        left[row] -= size
        one = np.ones(1, np.int64)
        spans.append((row * one, word_at[word] * one, size * one, one, one))
  if not spans:
    return Spans(*np.zeros((5, 0), np.int64))
  row, first, size, words, drawn = map(np.concatenate, zip(*spans, strict=True))
  return Spans(row, first - row * length, first - row * length + size, words, drawn)


def mask_tokens(ids, spans, keys_B, *, slots, mask_id, ordinary_ids, mask_share=0.8, random_share=0.1):
  """Hides the chosen words: 80 % of their tokens become [MASK], 10 % a random token, 10 % stay; each on its own.

  Args:
    ids: int32 array [B, L].
    spans: Spans.
    keys_B: uint64 array [B].
    slots: M; no row has more tokens in its spans.
    mask_id: int.
    ordinary_ids: int32 array, the ids that random replacements are drawn from.
    mask_share, random_share: as above.

  Returns:
    Masked.
  """
  row, start, size = spans.row, spans.start, spans.stop - spans.start
  batch = len(ids)
  is_hidden = np.zeros(ids.size, bool)
  is_hidden[ragged(row * ids.shape[1] + start, size)] = True
  flat = np.flatnonzero(is_hidden)
  row = flat // ids.shape[1]
  slot = np.arange(len(flat)) - np.searchsorted(row, np.arange(batch))[row]

  labels = ids.ravel()[flat]
  random = rng.bits(keys_B, slots)[row, slot]
  low = random & np.uint64(0xFFFFFFFF)
  is_mask = low < np.uint64(round(mask_share * 2**32))
  is_random = ~is_mask & (low < np.uint64(round((mask_share + random_share) * 2**32)))
  shown = np.where(is_mask, mask_id, np.where(is_random, ordinary_ids[rng.below(random, len(ordinary_ids))], labels))
  ids = ids.copy()
  ids.ravel()[flat] = shown

  result = Masked(
    ids=ids,
    positions=np.zeros((batch, slots), np.int32),
    labels=np.zeros((batch, slots), np.int32),
    weights=np.zeros((batch, slots), np.float32),
  )
  result.positions[row, slot] = flat - row * ids.shape[1]
  result.labels[row, slot] = labels
  result.weights[row, slot] = 1
  return result
