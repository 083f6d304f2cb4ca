"""Whole-word n-gram masking of a batch at once (ALBERT, section 3.1; the original's `create_masked_lm_predictions`)."""

import typing

import numpy as np

from albert_jax.data import rng
from albert_jax.data.records import ragged

_BLOCK = 32  # tries drawn at a time


class Spans(typing.NamedTuple):
  """Runs of whole words in a batch, in no particular order; int64 arrays with an entry for each run.

  Attributes:
    row: the row of the run.
    start: its first column.
    stop: the column after its last.
    words: its number of words.
    drawn: its number of words before it was shortened to the row's remaining budget.
  """

  row: np.ndarray
  start: np.ndarray
  stop: np.ndarray
  words: np.ndarray
  drawn: np.ndarray


class Masked(typing.NamedTuple):
  """A masked batch.

  Attributes:
    ids: int32 array [B, L], the input with replacements.
    positions: int32 array [B, M], ascending; 0 where unused.
    labels: int32 array [B, M], the original ids at the positions; 0 where unused.
    weights: float32 array [B, M], 1 where used.
  """

  ids: np.ndarray
  positions: np.ndarray
  labels: np.ndarray
  weights: np.ndarray


def ngram_probabilities(ngram: int, favor_shorter: bool = True) -> np.ndarray:
  """Returns p(n) for n = 1 … ngram: proportional to 1/n, or the reverse of that if not `favor_shorter`."""
  p = 1 / np.arange(1, ngram + 1)
  p /= p.sum()
  return p if favor_shorter else p[::-1]


def choose_spans(
  is_start: np.ndarray,
  is_special: np.ndarray,
  budget: np.ndarray,
  keys_B: np.ndarray,
  *,
  ngram: int,
  favor_shorter: bool = True,
) -> Spans:
  """Chooses which words to mask.

  As in the original, a length n and a random run of n words are drawn repeatedly; a run with a masked word is rejected;
  the last runs are shortened to the remaining budget, and a word longer than that is skipped. Unlike in the original,
  a rejected run is drawn again with the same n, so that the lengths follow p(n), and runs do not span special tokens.

  Args:
    is_start: bool array [B, L], where words start; also True at every special token and at the first padding.
    is_special: bool array [B, L], special tokens and padding, which are never masked.
    budget: int64 array [B], the most tokens to mask in each row.
    keys_B: uint64 array [B].
    ngram: the most words in a run.
    favor_shorter: see `ngram_probabilities`.

  Returns:
    The Spans; each consists of whole words.
  """
  length = is_start.shape[1]
  flat_starts = np.flatnonzero(is_start)
  count = is_start.sum(axis=1)
  base = np.cumsum(count) - count
  taken = np.ones(len(flat_starts) + ngram, bool)
  taken[: len(flat_starts)] = is_special.ravel()[flat_starts]
  word_at = np.append(flat_starts, np.full(ngram, is_start.size))

  # The number of tries depends on the row alone, so that the row is the same in any batch.
  tries = 2 * budget + 8
  edges = np.ceil(np.cumsum(ngram_probabilities(ngram, favor_shorter)) * 2**32).astype(np.uint64)[:-1]
  random = rng.bits(~keys_B, int(budget.max(initial=0))) >> np.uint64(32)
  lengths = 1 + (random[:, :, None] >= edges).sum(axis=2)

  left = budget.copy()
  accepted = np.zeros(len(budget), np.int64)  # The number of runs, which is also the index into a row's lengths.
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

  # A few rows have a token or two left in their budget. For these, all words are tried in a random order.
  for row in np.flatnonzero(left > 0):
    words = np.arange(base[row], base[row] + count[row])
    words = words[np.argsort(rng.bits(keys_B[row : row + 1] ^ np.uint64(1), len(words))[0])]
    for word in words[~taken[words]]:
      size = word_at[word + 1] - word_at[word]
      if size <= left[row]:
        left[row] -= size
        ones = np.ones(1, np.int64)
        spans.append((row * ones, word_at[word] * ones, size * ones, ones, ones))
  if not spans:
    return Spans(*np.zeros((5, 0), np.int64))
  rows, firsts, sizes, words, drawn = map(np.concatenate, zip(*spans, strict=True))
  return Spans(rows, firsts - rows * length, firsts - rows * length + sizes, words, drawn)


def mask_tokens(
  ids: np.ndarray,
  spans: Spans,
  keys_B: np.ndarray,
  *,
  slots: int,
  mask_id: int,
  ordinary_ids: np.ndarray,
  mask_share: float = 0.8,
  random_share: float = 0.1,
) -> Masked:
  """Masks the chosen words: 80 % of their tokens become [MASK], 10 % a random token, 10 % stay, independently.

  Args:
    ids: int32 array [B, L].
    spans: Spans.
    keys_B: uint64 array [B].
    slots: M, the slots for masked tokens of a row.
    mask_id: the id of [MASK].
    ordinary_ids: int32 array, the ids that random replacements are drawn from.
    mask_share: the share of tokens that become [MASK].
    random_share: the share of tokens that become a random token.

  Returns:
    The Masked batch.
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
