"""Which sentences make an example."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from albert_jax.data import records, rng
from albert_jax.data.pretraining import pairs


def batch_of(all_lengths):
  """Records whose ids count up through each record, with these sentence lengths."""
  packed = []
  for number, lengths in enumerate(all_lengths):
    starts = np.cumsum([0, *lengths[:-1]]).astype(np.uint16)
    ids = np.arange(sum(lengths), dtype=np.uint16)
    packed.append(records.pack(ids, starts, np.ones(len(ids), bool), number))
  return records.unpack(packed)


@given(
  st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=12), min_size=1, max_size=20),
  st.integers(5, 80),
  st.sampled_from([0.0, 0.5, 1.0]),
  st.integers(0, 2**32),
)
def test_two_runs_of_one_record_in_order(all_lengths, max_tokens, short_seq_rate, seed):
  batch = batch_of(all_lengths)
  keys = rng.keys(seed, "pairs", np.arange(len(all_lengths)))
  chosen = pairs.choose(batch, keys, max_tokens=max_tokens, short_seq_rate=short_seq_rate)
  for r, lengths in enumerate(all_lengths):
    first, second = (int(chosen.first_start[r]), int(chosen.first_size[r])), None
    second = (int(chosen.second_start[r]), int(chosen.second_size[r]))
    total = sum(lengths)
    assert first[1] >= 1 and first[1] + second[1] <= max_tokens
    assert chosen.is_pair[r] == (len(lengths) > 1) == (second[1] > 0)
    a, b = (second, first) if chosen.label[r] else (first, second)
    assert a[0] >= 0 and a[0] + a[1] <= total
    if chosen.is_pair[r]:
      assert a[0] + a[1] <= b[0] and b[0] + b[1] <= total
      # one sentence boundary lies between the two, and only trimming makes a gap
      boundaries = set(np.cumsum(lengths[:-1]).tolist())
      assert boundaries & set(range(a[0] + a[1], b[0] + 1))
      if first[1] + second[1] < max_tokens:
        assert a[0] + a[1] == b[0] and a[0] in boundaries | {0} and b[0] + b[1] in boundaries | {total}
    if not short_seq_rate:  # a row is as full as the record allows
      assert first[1] + second[1] == min(total, max_tokens)


def test_swaps_and_short_sequences_have_their_rates():
  count = 20000
  lengths = np.random.default_rng(0).integers(3, 40, (count, 25)).tolist()
  chosen = pairs.choose(batch_of(lengths), rng.keys(0, "pairs", np.arange(count)), max_tokens=253, short_seq_rate=0.1)
  assert chosen.is_pair.all()
  assert abs(chosen.label.mean() - 0.5) < 0.01
  assert abs(chosen.is_short.mean() - 0.1) < 0.01
  full = chosen.first_size + chosen.second_size == 253
  assert full[~chosen.is_short].all() and full[chosen.is_short].mean() < 0.2
  # nothing about the sizes tells whether the texts were swapped
  for size in (chosen.first_size, chosen.second_size):
    assert abs(size[chosen.label].mean() - size[~chosen.label].mean()) < 4


@pytest.mark.parametrize("max_tokens", [28, 29, 61, 125])
def test_trimming_does_not_tell_the_order(max_tokens):
  """Of an odd number of tokens one part keeps more; it is the first of the row, not the first of the document."""
  count = 20000
  lengths = np.random.default_rng(0).integers(3, 100, (count, 8)).tolist()
  chosen = pairs.choose(
    batch_of(lengths), rng.keys(0, "pairs", np.arange(count)), max_tokens=max_tokens, short_seq_rate=0.0
  )
  difference = chosen.first_size - chosen.second_size
  for each in (-1, 0, 1):
    same = difference == each
    if same.sum() > 500:
      assert abs(chosen.label[same].mean() - 0.5) < 0.1
  longer_is_first = difference > 0
  assert abs(longer_is_first[chosen.label].mean() - longer_is_first[~chosen.label].mean()) < 0.1


def test_each_part_of_a_long_record_is_used():
  batch = batch_of([[10] * 50] * 4000)
  chosen = pairs.choose(batch, rng.keys(0, "pairs", np.arange(4000)), max_tokens=60, short_seq_rate=0.0)
  begin = np.minimum(chosen.first_start, chosen.second_start)
  end = np.maximum(chosen.first_start + chosen.first_size, chosen.second_start + chosen.second_size)
  assert begin.min() < 10 and end.max() > 490
  share = np.histogram(begin, bins=4, range=(0, 440))[0] / 4000
  assert (share > 0.2).all(), share


@pytest.mark.parametrize("lengths", [[[5]], [[300]], [[1, 1]], [[2, 300]], [[300, 2]]])
def test_odd_records(lengths):
  chosen = pairs.choose(batch_of(lengths), rng.keys(1, "pairs", np.arange(1)), max_tokens=29, short_seq_rate=0.0)
  assert chosen.first_size[0] + chosen.second_size[0] == min(29, sum(lengths[0]))
  assert chosen.is_pair[0] == (len(lengths[0]) == 2)


def test_without_pairs_there_is_one_run():
  chosen = pairs.choose(
    batch_of([[5, 6, 7]] * 9), rng.keys(1, "pairs", np.arange(9)), max_tokens=15, short_seq_rate=0.0, objective="none"
  )
  assert (chosen.first_size == 15).all() and not chosen.second_size.any()
  assert not chosen.is_pair.any() and not chosen.label.any()


def test_nsp_takes_half_of_the_second_texts_from_other_documents():
  count = 4000
  random = np.random.default_rng(0)
  batch = batch_of(random.integers(3, 40, (2 * count, 9)).tolist())
  chosen = pairs.choose(
    batch, rng.keys(0, "pairs", np.arange(count)), max_tokens=125, short_seq_rate=0.1, objective="nsp"
  )
  assert abs(chosen.label.mean() - 0.5) < 0.02 and chosen.is_pair.all()
  rows = np.arange(count)
  np.testing.assert_array_equal(chosen.second_record, np.where(chosen.label, count + rows, rows))
  assert (chosen.first_size + chosen.second_size <= 125).all() and (chosen.second_size > 0).all()
  assert (chosen.second_start + chosen.second_size <= batch.tokens[chosen.second_record]).all()
  true_next = ~chosen.label
  assert (chosen.first_start + chosen.first_size <= chosen.second_start)[true_next].all()


def test_nsp_never_calls_the_same_document_another():
  same = records.pack(np.arange(20, dtype=np.uint16), np.array([0, 10], np.uint16), np.ones(20, bool), 7)
  chosen = pairs.choose(
    records.unpack([same] * 20), rng.keys(0, "x", np.arange(10)), max_tokens=20, short_seq_rate=0, objective="nsp"
  )
  assert not chosen.label.any()
