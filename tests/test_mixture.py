"""Several datasets as one stream."""

import dataclasses
import json

import made_up
import numpy as np
import pytest

from albert_jax.data import datasets, records
from albert_jax.data.pretraining import mixture
from albert_jax.data.pretraining.batching import DataConfig, batch_maker, eval_batches
from albert_jax.errors import UserError


def test_shares_are_exact_and_epochs_complete():
  sizes = [700, 90, 1000]
  slots = mixture.block_slots("0.5,0.2,0.3", sizes)
  assert slots.sum() == mixture.BLOCK
  np.testing.assert_allclose(slots / mixture.BLOCK, [0.5, 0.2, 0.3], atol=1 / mixture.BLOCK)
  numbers = np.arange(4 * mixture.BLOCK)
  dataset_of, index = mixture.locate(numbers, slots, sizes, seed=3)
  for block in np.split(dataset_of, 4):
    np.testing.assert_array_equal(np.bincount(block), slots)
  for k, size in enumerate(sizes):
    # In n examples of a dataset every record comes floor or ceil of n / size times.
    count = np.bincount(index[dataset_of == k], minlength=size)
    assert count.min() >= 4 * slots[k] // size and count.max() <= -(-4 * slots[k] // size)
  # any part of the stream is found without the rest
  part = mixture.locate(numbers[5000:5100], slots, sizes, seed=3)
  np.testing.assert_array_equal(part, (dataset_of[5000:5100], index[5000:5100]))
  assert abs(np.corrcoef(dataset_of[:-1], dataset_of[1:])[0, 1]) < 0.05


def test_by_size_is_one_epoch_for_all():
  np.testing.assert_array_equal(mixture.block_slots("", [300, 100]), [3072, 1024])


@pytest.mark.parametrize("weights", ["1", "1,2,3", "1,-1", "1,x", "1,nan"])
def test_weights_must_fit(weights):
  with pytest.raises(UserError, match=r"must be 2 positive numbers.*weights=1,1"):
    mixture.block_slots(weights, [10, 20])


def test_a_share_too_small_to_keep_is_an_error():
  with pytest.raises(UserError, match="less than one example"):
    mixture.block_slots("1,1e-9", [10, 20])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  spm = made_up.vocabulary(folder)
  for name, count in (("a", 60), ("b", 20)):
    docs = made_up.documents(count, seed=count)
    made_up.dataset(folder, docs, spm=spm, name=name, segment_tokens=64, validation_fraction=0.2)
  made_up.dataset(folder, made_up.documents(10), spm=spm, name="other", lower=False)
  return folder


def test_batches_come_from_all(folder):
  cfg = DataConfig(f"{folder / 'a'},{folder / 'b'}", weights="1,3", seq_length=64)
  documents = [
    set(records.unpack(datasets.fetch(data, list(range(len(data))))).document.tolist())
    for data in (datasets.open_split(str(folder / name), "train") for name in "ab")
  ]
  _, details = batch_maker(cfg, batch_size=mixture.BLOCK, seed=0).explain(0)
  share = np.isin(details.records.document, np.array(list(documents[1]), np.uint64)).mean()
  assert share == 0.75
  parts = [batch_maker(cfg, batch_size=64, seed=0, host=h, hosts=2)(3)["input_ids"] for h in range(2)]
  np.testing.assert_array_equal(np.concatenate(parts), batch_maker(cfg, batch_size=64, seed=0)(3)["input_ids"])
  sizes = [len(datasets.open_split(str(folder / name), "validation")) for name in "ab"]
  real = sum(int(batch["mlm_weights"].any(axis=1).sum()) for batch in eval_batches(cfg, batch_size=16, seed=0))
  assert real == sum(sizes)


def test_the_description_is_that_of_all(folder):
  both = datasets.describe(f"{folder / 'a'},{folder / 'b'}")
  descriptions = [json.loads((folder / name / "prepare.json").read_text()) for name in "ab"]
  assert both["splits"]["train"]["tokens"] == sum(
    description["splits"]["train"]["tokens"] for description in descriptions
  )
  losses = sorted(description["baselines"]["unigram_loss"] for description in descriptions)
  assert losses[0] < both["baselines"]["unigram_loss"] < losses[1]


def test_datasets_that_do_not_agree_are_not_mixed(folder):
  cfg = DataConfig(f"{folder / 'a'},{folder / 'other'}")
  with pytest.raises(UserError, match="another vocabulary than"):
    batch_maker(cfg, batch_size=8, seed=0)
  with pytest.raises(UserError, match="must be 2 positive"):
    batch_maker(dataclasses.replace(cfg, dataset=f"{folder / 'a'},{folder / 'b'}", weights="1"), batch_size=8, seed=0)
