"""Long sequences in overlapping rows: every item decided on once, with context."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from albert_jax.data.finetuning import windows


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(4, 30))
def test_windows_decide_on_every_word_once_and_with_context(sizes, room):
  overlap = room // 2
  ends = np.cumsum([0, *(min(size, overlap) for size in sizes)])
  spans = list(windows.windows(ends, room, overlap))
  decided = [word for _, _, own_begin, own_end in spans for word in range(own_begin, own_end)]
  assert decided == list(range(len(sizes)))
  for begin, end, own_begin, own_end in spans:
    assert begin <= own_begin < own_end <= end
    assert ends[end] - ends[begin] <= room
  for (_, end, _, own_end), (following, _, _, _) in itertools.pairwise(spans):
    assert ends[end] - ends[following] <= overlap
    assert following <= own_end


def test_rows_of_items_with_labels_and_types():
  sequences = [[[10, 11], [12], [13, 14]], [], [[15]]]
  encoded = windows.encode(sequences, [[1, 0, 1], [], [0]], 12, begin=[2], end=[3], pad_id=0, alternate=True)
  rows = {name: [row.tolist() for row in values] for name, values in encoded.rows.tokens.items()}
  assert rows == {
    "input_ids": [[2, 10, 11, 12, 13, 14, 3], [2, 15, 3]],
    "labels": [[-1, 1, -1, 0, 1, -1, -1], [-1, 0, -1]],
    "token_type_ids": [[0, 0, 0, 1, 0, 0, 0], [0, 0, 0]],
  }
  assert encoded.by_item(encoded.rows.tokens["labels"]) == [[1, 0, 1], [], [0]]
  assert [x.tolist() for x in encoded.positions] == [[1, 3, 4], [1]]


@given(st.lists(st.lists(st.integers(0, 5), max_size=30), max_size=5), st.integers(4, 30))
def test_what_goes_in_comes_out_whatever_the_length(sizes, seq_length):
  longest = windows.longest_item(seq_length)
  sequences = [[[7] * min(size + 1, longest) for size in some] for some in sizes]
  labels = [list(range(len(some))) for some in sizes]
  encoded = windows.encode(sequences, labels, seq_length, begin=[], end=[], pad_id=0)
  assert encoded.by_item(encoded.rows.tokens["labels"]) == labels
  assert all(len(row) <= seq_length for row in encoded.rows.tokens["input_ids"])
