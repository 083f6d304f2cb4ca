"""Batches for prediction: every row once, in few shapes, with little padding."""

import numpy as np
import pytest

from albert_jax.data.finetuning import batching
from albert_jax.data.finetuning.batching import Rows


def rows_of(sizes):
  return Rows({"input_ids": [np.full(size, i + 1) for i, size in enumerate(sizes)]}, {"number": np.arange(len(sizes))})


def serve(sizes, most=64, tokens=1024, filled=0.75, lengths=batching.FINE_LENGTHS, longest=512):
  rows = rows_of(sizes)
  return list(batching.serving_batches(rows, most=most, tokens=tokens, filled=filled, lengths=lengths, longest=longest))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 63, 64, 65, 200])
def test_every_row_is_served_once(count):
  sizes = np.random.default_rng(count).integers(1, 513, count)
  batches = serve(sizes)
  served = np.concatenate([batch["row"] for batch in batches])
  assert sorted(served[served >= 0]) == list(range(count))
  for batch in batches:
    shape = batch["input_ids"].shape
    assert shape[0] in batching.SIZES
    assert shape[1] in batching.FINE_LENGTHS
    assert shape[0] == 1 or (shape[0] * shape[1] <= 1024 and np.mean(batch["row"] >= 0) >= 0.75)
    for row, ids, mask, number in zip(
      *(batch[k] for k in ("row", "input_ids", "attention_mask", "number")), strict=True
    ):
      if row >= 0:
        assert (number, list(ids[: sizes[row]]), mask.sum()) == (row, [row + 1] * sizes[row], sizes[row])


def test_one_row_pays_for_no_other():
  assert [batch["input_ids"].shape for batch in serve([9])] == [(1, 16)]
  assert [batch["input_ids"].shape for batch in serve([9] * 5)] == [(4, 16), (1, 16)]
  assert [batch["input_ids"].shape for batch in serve([9] * 3)] == [(4, 16)]
  assert [batch["input_ids"].shape for batch in serve([9] * 8)] == [(4, 16), (4, 16)]
  assert [batch["input_ids"].shape for batch in serve([9] * 8, filled=0.5)] == [(16, 16)]
  assert serve([]) == []


def test_limits():
  assert max(len(batch["row"]) for batch in serve([5] * 100, most=4)) == 4
  assert [batch["input_ids"].shape for batch in serve([70], longest=75)] == [(1, 75)]
  assert [batch["input_ids"].shape for batch in serve([70], lengths=batching.LENGTHS)] == [(1, 96)]
  assert [batch["input_ids"].shape for batch in serve([600], longest=512)] == [(1, 600)], "the model says no to this"


def test_training_pads_no_further_than_it_is_told():
  rows = rows_of([70, 98, 100])
  for longest, length in ((None, 128), (100, 100), (512, 128)):
    train = next(batching.train_batches(rows, batch_size=3, seed=0, longest=longest))
    (held_out,) = batching.eval_batches(rows, batch_size=3, longest=longest)
    assert train["input_ids"].shape == held_out["input_ids"].shape == (3, length)


def test_groups_count_as_many_rows():
  rows = Rows({"input_ids": [np.ones(8, int)] * 64}, {}, group=4)
  shapes = {
    batch["input_ids"].shape
    for batch in batching.serving_batches(
      rows, most=64, tokens=128, filled=0.75, lengths=batching.FINE_LENGTHS, longest=512
    )
  }
  assert shapes == {(4, 4, 8)}


def test_short_sentences_do_not_pay_for_long_ones():
  sizes = np.random.default_rng(0).integers(4, 61, 872)  # about as in SST-2
  assert sum(batch["input_ids"].size for batch in serve(sizes)) < 1.2 * sizes.sum()
