"""From a segment of a document to the two texts of an example: which sentences, where they part, which comes first."""

import typing

import numpy as np

from albert_jax.data import draws


class Pairs(typing.NamedTuple):
  """Two runs of tokens a row, as offsets into the row's record; all arrays are [B].

  Attributes:
    first_start, first_size, second_start, second_size: int64; `second_size` is 0 where a row has one run only.
    is_swapped: bool, the second run comes before the first in the document.
    is_pair: bool, the row has two runs, so their order can be asked for.
    is_short: bool, the row was drawn to be a short sequence.
  """

  first_start: np.ndarray
  first_size: np.ndarray
  second_start: np.ndarray
  second_size: np.ndarray
  is_swapped: np.ndarray
  is_pair: np.ndarray
  is_short: np.ndarray


def choose(records, keys_B, *, max_tokens, short_seq_rate, want_pairs=True):
  """Chooses the texts of a batch.

  As in the original (create_pretraining_data.py), a row is a run of whole sentences that reaches its target length, and
  parts at a random sentence boundary; what exceeds `max_tokens` is trimmed from the longer part, at random ends. Here
  the run is drawn anew in each epoch from a record that is longer than the target. The parts always come from one
  record, so from one document. Trimming treats both parts alike, so it cannot give their order away.

  Args:
    records: records.Records of B segments.
    keys_B: uint64 array [B], see draws.keys.
    max_tokens: int ≥ 2, the most tokens of a row, special ones not counted.
    short_seq_rate: the share of the rows whose target is drawn from 2 to `max_tokens`; the others' is `max_tokens`.
    want_pairs: False for one run a row.

  Returns:
    Pairs.
  """
  random = draws.bits(keys_B, 7).T
  rows = np.arange(len(keys_B))
  tokens = records.tokens
  is_short = draws.chance(random[0], short_seq_rate)
  target = np.where(is_short, 2 + draws.below(random[1], max_tokens - 1), max_tokens)

  # One sorted array of all sentence starts answers "which sentence holds this token" for all rows at once.
  starts = records.sentence_starts
  line = np.repeat(rows << 16, records.sentences) + starts
  start = draws.below(random[2], np.maximum(tokens - target, 0) + 1)
  first_sentence = np.searchsorted(line, (rows << 16) + start, side="right") - 1
  stop = np.minimum(starts[first_sentence] + target, tokens)
  last_sentence = np.searchsorted(line, (rows << 16) + stop - 1, side="right") - 1

  # A run of one sentence takes a neighbour, where there is one, to make a pair.
  final = records.sentence_base + records.sentences - 1
  is_single = first_sentence == last_sentence
  grow_right = is_single & (last_sentence < final)
  grow_left = is_single & ~grow_right & (first_sentence > records.sentence_base) & want_pairs
  last_sentence = last_sentence + (grow_right & want_pairs)
  first_sentence = first_sentence - grow_left

  count = last_sentence - first_sentence + 1
  is_pair = (count > 1) & want_pairs
  begin = starts[first_sentence]
  end = np.where(last_sentence < final, np.append(starts, 0)[last_sentence + 1], tokens)
  part = 1 + draws.below(random[3], np.maximum(count - 1, 1))
  middle = np.where(is_pair, starts[np.minimum(first_sentence + part, final)], end)

  a_size, b_size = middle - begin, end - middle
  b_kept = np.minimum(b_size, np.maximum(max_tokens - a_size, max_tokens // 2))
  a_kept = np.minimum(a_size, max_tokens - b_kept)
  a_start = begin + draws.below(random[4], a_size - a_kept + 1)
  b_start = middle + draws.below(random[5], b_size - b_kept + 1)
  is_swapped = is_pair & draws.chance(random[6], 0.5)
  return Pairs(
    first_start=np.where(is_swapped, b_start, a_start),
    first_size=np.where(is_swapped, b_kept, a_kept),
    second_start=np.where(is_swapped, a_start, b_start),
    second_size=np.where(is_swapped, a_kept, b_kept),
    is_swapped=is_swapped,
    is_pair=is_pair,
    is_short=is_short,
  )
