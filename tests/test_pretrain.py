"""Examples from segments."""

import hashlib

import numpy as np
import pytest

from albert_jax.commands import common
from albert_jax.data import records
from albert_jax.data.pretraining.examples import DataConfig, Vocabulary, make_batch
from albert_jax.errors import UserError
from albert_jax.tasks import plbert, pretrain

VOCABULARY = Vocabulary(pad_id=0, cls_id=2, sep_id=3, mask_id=4, ordinary_ids=np.arange(5, 1000, dtype=np.int32))
PAD, CLS, SEP, MASK = 0, 2, 3, 4


def segments(count, *, tokens=(1, 200), seed=0, dtype=np.uint16):
  """Packed segments; a record's ids count up from a random id, so that order can be seen in the batch."""
  random = np.random.default_rng(seed)
  packed = []
  for number in range(count):
    size = int(random.integers(tokens[0], tokens[1] + 1))
    ids = (10 + random.integers(500) + np.arange(size)).astype(dtype)
    cuts = np.sort(random.choice(np.arange(1, size), min(size - 1, size // 12), replace=False)) if size > 1 else []
    starts = np.array([0, *cuts], np.uint16)
    words = random.random(size) < 0.7
    words[starts] = True
    packed.append(records.pack(ids, starts, words, number))
  return packed


def unmask(batch):
  """Returns the batch's ids before masking."""
  ids = batch["input_ids"].copy()
  rows, slots = np.nonzero(batch["mlm_weights"])
  ids[rows, batch["mlm_positions"][rows, slots]] = batch["mlm_labels"][rows, slots]
  return ids


@pytest.mark.parametrize("whole_word", [True, False])
@pytest.mark.parametrize("objective", ["sop", "none"])
@pytest.mark.parametrize("length", [8, 64, 256])
def test_the_fields_fit_together(length, objective, whole_word):
  packed = segments(300)
  cfg = DataConfig("", seq_length=length, objective=objective, whole_word=whole_word)
  batch = make_batch(packed, np.arange(300), 0, cfg, VOCABULARY)
  assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
    "input_ids": ((300, length), "int32"),
    "attention_mask": ((300, length), "int32"),
    "token_type_ids": ((300, length), "int32"),
    "mlm_positions": ((300, cfg.slots), "int32"),
    "mlm_labels": ((300, cfg.slots), "int32"),
    "mlm_weights": ((300, cfg.slots), "float32"),
    "sop_label": ((300,), "int32"),
    "sop_weight": ((300,), "float32"),
  }
  unpacked = records.unpack(packed)
  for r, ids in enumerate(unmask(batch).tolist()):
    size = int(batch["attention_mask"][r].sum())
    assert batch["attention_mask"][r].tolist() == [1] * size + [0] * (length - size)
    assert ids[0] == CLS and ids[size - 1] == SEP and set(ids[size:]) <= {PAD}
    middle = ids.index(SEP)
    first, second = ids[1:middle], ids[middle + 1 : size - 1]
    is_pair = batch["sop_weight"][r] == 1
    assert bool(second) == is_pair and (objective == "sop" or not is_pair)
    assert batch["token_type_ids"][r].tolist() == [0] * (middle + 1) + [1] * (size - middle - 1) + [0] * (length - size)
    source = unpacked.ids[unpacked.id_base[r] :][: unpacked.tokens[r]].tolist()
    a, b = (second, first) if batch["sop_label"][r] else (first, second)
    for part in (a, b):  # ids count up, so a run is known by its ends
      assert part == list(range(part[0], part[0] + len(part))) if part else True
      assert set(part) <= set(source)
    if is_pair:
      assert a[-1] < b[0]  # in the document, a comes before b
    if not is_pair:
      assert batch["sop_label"][r] == 0
  used = batch["mlm_weights"] == 1
  rows = np.nonzero(used)[0]
  at = batch["mlm_positions"][used]
  assert not np.isin(unmask(batch)[rows, at], [PAD, CLS, SEP]).any()


def test_rates():
  packed = segments(4000, tokens=(100, 400))
  cfg = DataConfig("", seq_length=128)
  assert cfg.slots == 19 and DataConfig("", seq_length=512).slots == 77
  batches = [make_batch(packed, np.arange(4000) + 4000 * i, 1, cfg, VOCABULARY) for i in range(5)]
  pairs = np.concatenate([b["sop_label"][b["sop_weight"] == 1] for b in batches])
  assert abs(pairs.mean() - 0.5) < 0.01
  masked = sum(b["mlm_weights"].sum() for b in batches)
  tokens = sum((unmask(b) > MASK).sum() for b in batches)
  assert abs(masked / tokens - 0.15) < 0.002
  # another number, another example of the same record
  assert (batches[0]["input_ids"] != batches[1]["input_ids"]).any(axis=1).all()


def test_wide_ids():
  vocabulary = VOCABULARY._replace(ordinary_ids=np.arange(5, 100_000, dtype=np.int32))
  batch = make_batch(segments(20, dtype=np.uint32), np.arange(20), 0, DataConfig("", seq_length=64), vocabulary)
  narrow = make_batch(segments(20), np.arange(20), 0, DataConfig("", seq_length=64), vocabulary)
  np.testing.assert_array_equal(unmask(batch), unmask(narrow))


def test_golden_batch():
  # The same bits on every machine. If this changes on purpose, put the new digest here and say so in the commit: a run
  # resumed across the change sees other batches than it would have.
  packed = []
  for number in range(50):
    ids = ((np.arange(20 + 5 * number) * 7919 + number) % 983 + 5).astype("<u2")
    packed.append(records.pack(ids, np.arange(0, len(ids), 11, dtype="<u2"), ids % 4 > 0, number))
  batch = make_batch(packed, np.arange(50), 7, DataConfig("", seq_length=128), VOCABULARY)
  digest = hashlib.sha256(b"".join(key.encode() + value.tobytes() for key, value in sorted(batch.items())))
  assert digest.hexdigest()[:16] == "c11031b3607cb8d9"


@pytest.mark.parametrize(
  "mistake",
  [{"mask_rate": 1.5}, {"seq_length": 4}, {"objective": "soup"}, {"mask_share": 0.95}, {"ngram": 0}, {"workers": -1}],
)
def test_mistakes_are_explained(mistake):
  with pytest.raises(UserError, match=rf"data\.{next(iter(mistake))}.*expected"):
    DataConfig("", **mistake)


def test_a_metric_that_no_evaluation_has_is_not_listed():
  config = common.load_config("pretrain:tiny")
  assert "sop_loss" in pretrain.SPEC.metrics(config)
  config.data.objective = "none"
  assert pretrain.SPEC.metrics(config) == ("mlm_loss", "mlm_accuracy")
  config = common.load_config("plbert:small")
  assert "phoneme_loss" in plbert.SPEC.metrics(config)
  config.data.mask_rate = 0.0
  assert plbert.SPEC.metrics(config) == ("word_loss", "word_accuracy")


def test_without_pairs_and_masks_nothing_can_be_learned():
  config = common.load_config("pretrain:tiny")
  config.update({"data": {"objective": "none"}, "loss": {"mlm_weight": 0.0}})
  with pytest.raises(UserError, match=r"loss\.mlm_weight=0 and data\.objective=none leave nothing to learn"):
    pretrain.sketch(config)
