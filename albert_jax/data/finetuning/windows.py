"""Long sequences of items (words, sentences) as overlapping rows of pieces; each item is predicted in one row."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from albert_jax.data.finetuning.batching import Rows


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Sequences as rows of pieces, in which the first piece of each item has the item's label.

  Attributes:
    sequences: the number of sequences.
    rows: "input_ids" and "labels", which is -1 everywhere but at the first pieces of items with a label.
    sequence: int [rows], the sequence of each row; the rows of a sequence follow each other.
    positions: for each row the positions of the items that are predicted in it. Over the rows of a sequence these are
      all of its items, in order, each once.
  """

  sequences: int
  rows: Rows
  sequence: np.ndarray
  positions: list[np.ndarray]

  def by_item(self, values: Sequence[np.ndarray]) -> list[list]:
    """Returns the values at the items of each sequence, from one array [L] a row."""
    result: list[list] = [[] for _ in range(self.sequences)]
    for s, positions, row in zip(self.sequence, self.positions, values, strict=True):
      result[s] += list(np.asarray(row)[positions])
    return result


def encode(
  sequences: Sequence[Sequence[Sequence[int]]],
  labels: Sequence[Sequence[int]] | None,
  seq_length: int,
  *,
  begin: Sequence[int],
  end: Sequence[int],
  pad_id: int,
  alternate: bool = False,
) -> Encoded:
  """Encodes sequences as rows `begin … end`; a longer sequence is cut between items.

  Args:
    sequences: lists of items, each a list of at most `longest_item(seq_length - …)` ids.
    labels: for each sequence a number an item, or None.
    seq_length: the longest row.
    begin: ids before the items of each row.
    end: ids behind them.
    pad_id: the id that fills up shorter rows of a batch.
    alternate: whether token_type_ids are 0, 1, 0, … from item to item.
  """
  room = seq_length - len(begin) - len(end)
  tokens: dict[str, list[np.ndarray]] = {"input_ids": [], "labels": []}
  if alternate:
    tokens["token_type_ids"] = []
  sequence, positions = [], []
  for s, items in enumerate(sequences):
    ends = np.cumsum([0, *map(len, items)])
    for first, last, own_first, own_last in windows(ends, room, longest_item(room)):
      at = (len(begin) + ends[own_first:own_last] - ends[first]).astype(np.int32)
      row = np.array([*begin, *itertools.chain(*items[first:last]), *end], np.int32)
      label = np.full(len(row), -1, np.int32)
      if labels is not None:
        label[at] = labels[s][own_first:own_last]
      tokens["input_ids"].append(row)
      tokens["labels"].append(label)
      if alternate:
        types = np.repeat(np.arange(first, last) % 2, np.diff(ends[first : last + 1]))
        tokens["token_type_ids"].append(np.pad(types, (len(begin), len(end))).astype(np.int32))
      sequence.append(s)
      positions.append(at)
  rows = Rows(tokens, {}, {"labels": -1, "input_ids": pad_id})
  return Encoded(len(sequences), rows, np.array(sequence, np.int64), positions)


def longest_item(room: int) -> int:
  """Returns the most pieces of an item, and of what two windows share, if a window has `room` pieces."""
  return room // 2


def windows(ends: np.ndarray, room: int, overlap: int) -> Iterator[tuple[int, int, int, int]]:
  """Cuts a sequence of items into overlapping windows of at most `room` pieces.

  Args:
    ends: int [items + 1], the pieces before each item, and all pieces. No item has more than room - overlap pieces.
    room: the most pieces of a window.
    overlap: the most pieces that two windows share.

  Yields:
    (begin, end, own_begin, own_end): the items of a window, and those that are predicted in it, because they have more
    context there than in the previous or next window. An empty sequence has no window.
  """
  items, begin, own_begin = len(ends) - 1, 0, 0
  while own_begin < items:
    end = int(np.searchsorted(ends, ends[begin] + room, side="right")) - 1
    if end == items:
      yield begin, end, own_begin, end
      return
    following = int(np.searchsorted(ends, ends[end] - overlap))
    own_end = max(int(np.searchsorted(ends, (ends[following] + ends[end]) / 2)), own_begin + 1)
    yield begin, end, own_begin, own_end
    begin, own_begin = following, own_end
