"""Several examples in a row."""

import dataclasses

import made_up
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from albert_jax.data import datasets
from albert_jax.data.pretraining import packing
from albert_jax.data.pretraining.batching import DataConfig, batch_maker, eval_batches, train_batches
from albert_jax.errors import UserError


@settings(deadline=None)
@given(st.lists(st.integers(3, 40), min_size=1, max_size=200), st.integers(2, 6), st.integers(0, 2**32))
def test_every_record_is_in_one_row_each_epoch(sizes, most, seed):
  sizes = np.array(sizes)
  plan = packing.make_plan(sizes, 40, most)
  for epoch in (None, 0, 1):
    numbers = np.arange(plan.rows) + (epoch or 0) * plan.rows
    members, is_used = packing.rows_to_records(plan, numbers, None if epoch is None else seed)
    assert sorted(members[is_used].tolist()) == list(range(len(sizes)))
    assert (np.where(is_used, sizes[members], 0).sum(axis=1) <= 40).all()
    assert is_used[:, 0].all() and (np.diff(is_used.astype(int), axis=1) <= 0).all()
  # Best fit leaves no two rows that could have been one, but for the most examples of a row.
  members, is_used = packing.rows_to_records(plan, np.arange(plan.rows))
  filled, used = np.where(is_used, sizes[members], 0).sum(axis=1), is_used.sum(axis=1)
  for a in range(min(plan.rows, 20)):
    for b in range(a):
      assert filled[a] + filled[b] > 40 or used[a] + used[b] > most


@settings(deadline=None)
@given(st.lists(st.integers(3, 64), min_size=1, max_size=100), st.integers(2, 4), st.integers(0, 2**32))
def test_room_takes_a_part_of_any_record(sizes, most, seed):
  plan = packing.make_plan(np.array(sizes), 64, most)
  numbers = np.arange(3 * plan.rows)
  members, is_used = packing.rows_to_records(plan, numbers, seed)
  filled, is_used_too, max_tokens = packing.fill(plan, numbers, seed, members, is_used, 64)
  np.testing.assert_array_equal(filled[is_used], members[is_used])  # what was planned stays
  assert (is_used_too >= is_used).all() and (filled < len(sizes)).all() and (filled >= 0).all()
  used = np.where(is_used, np.array(sizes)[members], 0).sum(axis=1)
  limits = np.full(is_used.shape, 61)
  limits[is_used_too] = max_tokens
  is_new = is_used_too & ~is_used
  assert (is_new.sum(axis=1) <= 1).all() and (limits[is_used] == 61).all()
  room = 64 - used - np.where(is_new, limits + 3, 0).sum(axis=1)
  assert (room >= 0).all()
  assert ((room < 12) | (is_used.sum(axis=1) == most)).all()
  # any rows are the same without the others
  part = slice(plan.rows // 2, None, 2)
  again = packing.fill(plan, numbers[part], seed, members[part], is_used[part], 64)
  np.testing.assert_array_equal(again[0], filled[part])
  np.testing.assert_array_equal(again[1], is_used_too[part])


def test_segments_as_long_as_rows_leave_little_padding(tmp_path):
  docs = made_up.documents(60, sentences=(80, 120))
  folder = made_up.dataset(tmp_path, docs, segment_tokens=192, validation_fraction=0.1)
  cfg = DataConfig(str(folder), seq_length=192, short_seq_rate=0.0, packing=4)
  sizes = packing.example_sizes(datasets.lengths(cfg.dataset, "train"), 192)
  plan = packing.make_plan(sizes, 192, 4)
  assert 1 - sizes.sum() / (plan.rows * 192) > 0.04  # what the plan alone leaves
  batch, details = batch_maker(cfg, batch_size=512, seed=0).explain(0)
  assert 1 - batch["attention_mask"].mean() < 0.03
  rate = batch["mlm_weights"].sum() / (~details.rows.is_special).sum()
  assert abs(rate - 0.15) < 0.003


def test_short_documents_fill_rows():
  sizes = np.random.default_rng(0).integers(20, 400, 5000)
  plan = packing.make_plan(sizes, 512, 8)
  assert sizes.sum() / (plan.rows * 512) > 0.97
  alone = sizes.mean() / 512
  assert alone < 0.45


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  made_up.dataset(folder, made_up.documents(150, sentences=(1, 12)), segment_tokens=128, validation_fraction=0.2)
  return folder / "dataset"


@pytest.fixture
def cfg(folder):
  return DataConfig(str(folder), seq_length=128, short_seq_rate=0.0, packing=4)


def test_rows_hold_the_examples(cfg):
  batch, details = batch_maker(cfg, batch_size=32, seed=0).explain(0)
  examples = details.examples
  assert {name: value.shape for name, value in batch.items()} == {
    **dict.fromkeys(("input_ids", "attention_mask", "token_type_ids", "segment_ids", "position_ids"), (32, 128)),
    **dict.fromkeys(("mlm_positions", "mlm_labels", "mlm_weights"), (32, 19)),
    **dict.fromkeys(("sop_label", "sop_weight", "cls_positions"), (32, 4)),
  }
  assert 40 < len(examples["input_ids"]) <= 128
  example = 0
  for row in range(32):
    count = batch["segment_ids"][row].max()
    masked = iter(np.flatnonzero(batch["mlm_weights"][row]))
    for s in range(count):
      is_segment = batch["segment_ids"][row] == s + 1
      size = examples["attention_mask"][example].sum()
      np.testing.assert_array_equal(batch["input_ids"][row, is_segment], examples["input_ids"][example, :size])
      np.testing.assert_array_equal(
        batch["token_type_ids"][row, is_segment], examples["token_type_ids"][example, :size]
      )
      assert batch["position_ids"][row, is_segment].tolist() == list(range(size))
      assert batch["cls_positions"][row, s] == np.flatnonzero(is_segment)[0]
      assert batch["sop_label"][row, s] == examples["sop_label"][example]
      assert batch["sop_weight"][row, s] == examples["sop_weight"][example]
      for slot in np.flatnonzero(examples["mlm_weights"][example]):
        next_masked = next(masked)
        expected = batch["cls_positions"][row, s] + examples["mlm_positions"][example, slot]
        assert batch["mlm_positions"][row, next_masked] == expected
        assert batch["mlm_labels"][row, next_masked] == examples["mlm_labels"][example, slot]
      example += 1
    assert next(masked, None) is None
    assert not batch["sop_weight"][row, count:].any()
  assert example == len(examples["input_ids"])
  np.testing.assert_array_equal(batch["attention_mask"], batch["segment_ids"] > 0)
  assert batch["attention_mask"].mean() > 0.9 > examples["attention_mask"].mean() + 0.2


def test_packing_is_a_pure_function_too(cfg):
  whole = [batch for batch, _ in zip(train_batches(cfg, batch_size=8, seed=1), range(20), strict=False)]
  for step in (0, 7, 19):
    parts = [batch_maker(cfg, batch_size=8, seed=1, host=h, hosts=4)(step) for h in range(4)]
    for name, value in whole[step].items():
      np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), value)
  rows = sum(int(batch["mlm_weights"].any(axis=1).sum()) for batch in eval_batches(cfg, batch_size=8, seed=1))
  sizes = packing.example_sizes(datasets.lengths(cfg.dataset, "validation"), 128)
  assert rows == packing.make_plan(sizes, 128, 4).rows < len(sizes)


def test_mistakes_are_explained(cfg, folder):
  with pytest.raises(UserError, match=r"short_seq_rate=0\.0"):
    DataConfig("", packing=2)
  with pytest.raises(UserError, match=r"objective=nsp has two; expected one of them: add --config\.data\.packing=1"):
    DataConfig("", packing=2, short_seq_rate=0.0, objective="nsp")
  with pytest.raises(UserError, match="do not go together"):
    batch_maker(dataclasses.replace(cfg, dataset=f"{folder},{folder}", weights="1,2"), batch_size=8, seed=0)
