"""Long sequences of items (words, sentences) as overlapping rows of pieces, each item decided on exactly once."""

import dataclasses
import itertools

import numpy as np

from albert_jax.data.finetuning.batching import Rows


@dataclasses.dataclass(frozen=True)
class Encoded:
  """Sequences as rows of pieces, of which the first of each item is labelled.

  sequences: how many.
  rows: Rows with "input_ids" and "labels": at the first piece of an item its label, elsewhere -1.
  sequence: int [rows], which sequence a row is of; the rows of one follow each other.
  positions: for each row, where the first pieces of the items are that it decides on; all of them together are all
    items of the sequence, in order, each once.
  """

  sequences: int
  rows: Rows
  sequence: np.ndarray
  positions: list[np.ndarray]

  def by_item(self, values):
    """Args: values: one array [L] a row. Returns: for each sequence the list of the values at its items."""
    result = [[] for _ in range(self.sequences)]
    for s, positions, row in zip(self.sequence, self.positions, values, strict=True):
      result[s] += list(np.asarray(row)[positions])
    return result


def encode(sequences, labels, seq_length, *, begin, end, pad_id, alternate=False) -> Encoded:
  """Rows `begin … end` of at most `seq_length` pieces; what does not fit in one is cut between items.

  Args: sequences: lists of items, each a list of at most `longest_item(seq_length - …)` ids. labels: for each sequence
    an int a item, or None. begin, end: ids around each row. alternate: token_type_ids are 0, 1, 0, … from item to item.
  """
  room = seq_length - len(begin) - len(end)
  tokens = {"input_ids": [], "labels": []} | ({"token_type_ids": []} if alternate else {})
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


def longest_item(room) -> int:
  """How many pieces an item may have, and two windows share, if a window has room for so many."""
  return room // 2


def windows(ends, room, overlap):
  """Cuts a sequence of items into overlapping windows of at most `room` pieces.

  Args: ends: [items + 1], pieces before each item, and in all; no item has more than room - overlap of them.
  Yields: (begin, end, own_begin, own_end): the items of a window, and those it decides on, which are the ones that have
    more context there than in the next or previous window. None at all for an empty sequence.
  """
  items, begin, own_begin = len(ends) - 1, 0, 0
  while own_begin < items:
    end = int(np.searchsorted(ends, ends[begin] + room, side="right")) - 1
    if end == items:
      yield begin, end, own_begin, end
      return
    following = int(np.searchsorted(ends, ends[end] - overlap))  # so that it shares at most `overlap` pieces
    own_end = max(int(np.searchsorted(ends, (ends[following] + ends[end]) / 2)), own_begin + 1)
    yield begin, end, own_begin, own_end
    begin, own_begin = following, own_end
