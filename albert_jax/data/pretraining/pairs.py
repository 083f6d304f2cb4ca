"""Chooses the two texts of an example from a segment: the sentences, the boundary between them, and their order."""

import typing

import numpy as np

from albert_jax.data import rng
from albert_jax.data.records import Records


class Pairs(typing.NamedTuple):
  """Two runs of tokens a row, as offsets into their records; all arrays are [B].

  Attributes:
    first_start, first_size, second_start, second_size: int64; `second_size` is 0 where a row has one run only.
    second_record: int64, which record the second run is from; the first is from the row's own.
    label: bool, what the model is asked: whether the second run comes before the first in the document (`sop`), or
      comes from another document (`nsp`).
    is_pair: bool, the row has two runs, so it can be asked.
    is_short: bool, the row was drawn to be a short sequence.
  """

  first_start: np.ndarray
  first_size: np.ndarray
  second_start: np.ndarray
  second_size: np.ndarray
  second_record: np.ndarray
  label: np.ndarray
  is_pair: np.ndarray
  is_short: np.ndarray


def choose(
  records: Records, keys_B: np.ndarray, *, max_tokens: int | np.ndarray, short_seq_rate: float, objective: str = "sop"
) -> Pairs:
  """Chooses the texts of a batch.

  As in the original (create_pretraining_data.py), a row is a run of whole sentences that reaches its target length, and
  is divided at a random sentence boundary; tokens beyond `max_tokens` are trimmed from the longer part, at random ends.
  The run is drawn again in each epoch if the record is longer than the target. Trimming is the same for both parts, so
  it does not reveal their order. Under `sop` both parts come from one record, and so from one document.

  Args:
    records: records.Records of B segments; for `nsp` of 2 B, the second B to take other documents' texts from.
    keys_B: uint64 array [B], see rng.keys.
    max_tokens: int ≥ 2, or int64 array [B] of such, the most tokens of a row, special ones not counted.
    short_seq_rate: the share of the rows whose target is drawn from 2 to `max_tokens`; the others' is `max_tokens`.
    objective: `sop` (half of the pairs swapped), `nsp` (half of the second parts from another document), or `none`
      (one run a row).

  Returns:
    Pairs.
  """
  random = rng.bits(keys_B, 9).T
  rows = np.arange(len(keys_B))
  tokens = records.tokens[rows]
  is_short = rng.chance(random[0], short_seq_rate)
  target = np.where(is_short, 2 + rng.below(random[1], max_tokens - 1), max_tokens)

  # One sorted array of all sentence starts gives the sentence of a token for all rows at once.
  starts = records.sentence_starts
  line = np.repeat(np.arange(len(records.tokens)) << 16, records.sentences) + starts

  def sentence_at(record, token):
    return np.searchsorted(line, (record << 16) + token, side="right") - 1

  first_sentence = sentence_at(rows, rng.below(random[2], np.maximum(tokens - target, 0) + 1))
  last_sentence = sentence_at(rows, np.minimum(starts[first_sentence] + target, tokens) - 1)

  # A run of one sentence is extended by a neighbour, if there is one, to make a pair. The sentence is long: if the
  # neighbour was always the next one, the second part would be the shorter one, and lengths would tell the order.
  initial = records.sentence_base[rows]
  final = initial + records.sentences[rows] - 1
  is_lone = (first_sentence == last_sentence) & (objective != "none")
  backwards = (first_sentence > initial) & ((last_sentence == final) | rng.chance(random[8], 0.5))
  first_sentence = first_sentence - (is_lone & backwards)
  last_sentence = last_sentence + (is_lone & ~backwards & (last_sentence < final))

  count = last_sentence - first_sentence + 1
  is_pair = (count > 1) & (objective != "none")
  begin = starts[first_sentence]
  end = np.where(last_sentence < final, np.append(starts, 0)[last_sentence + 1], tokens)
  part = 1 + rng.below(random[3], np.maximum(count - 1, 1))
  middle = np.where(is_pair, starts[np.minimum(first_sentence + part, final)], end)
  a_size, b_begin, b_size = middle - begin, middle, end - middle
  record, label = rows, np.zeros(len(rows), bool)

  if objective == "nsp":
    other = len(rows) + rows
    label = rng.chance(random[6], 0.5) & (records.document[other] != records.document[rows])
    other_begin = starts[sentence_at(other, rng.below(random[7], records.tokens[other]))]
    other_size = np.minimum(records.tokens[other] - other_begin, np.maximum(target - a_size, 1))
    record = np.where(label, other, rows)
    b_begin, b_size = np.where(label, other_begin, b_begin), np.where(label, other_size, b_size)
    is_pair |= label

  swap = np.zeros(len(rows), bool)
  if objective == "sop":
    swap = label = is_pair & rng.chance(random[6], 0.5)
  first_begin, second_begin = np.where(swap, (b_begin, begin), (begin, b_begin))
  first_size, second_size = np.where(swap, (b_size, a_size), (a_size, b_size))
  # After the swap, as in the original: of an odd number of tokens the first part keeps one more, whichever part it is.
  second_kept = np.minimum(second_size, np.maximum(max_tokens - first_size, max_tokens // 2))
  first_kept = np.minimum(first_size, max_tokens - second_kept)
  return Pairs(
    first_start=first_begin + rng.below(random[4], first_size - first_kept + 1),
    first_size=first_kept,
    second_start=second_begin + rng.below(random[5], second_size - second_kept + 1),
    second_size=second_kept,
    second_record=record,
    label=label,
    is_pair=is_pair,
    is_short=is_short,
  )
