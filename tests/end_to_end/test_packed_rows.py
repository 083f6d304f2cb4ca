"""Rows that hold several examples, from the dataset to the loss."""

import jax
import numpy as np
import pytest
from conftest import flags, run

from albert_jax import AlbertConfig, init
from albert_jax.data.pretraining import batching
from albert_jax.data.pretraining.batching import DataConfig
from albert_jax.tasks import pretrain
from albert_jax.training.writer import read


def one_example_a_row(packed):
  """The examples of packed rows, each in a row of its own, as data/pretraining/examples.py would have laid them out."""
  rows = {name: [] for name in packed if name not in ("segment_ids", "position_ids", "cls_positions")}
  for b, s in np.argwhere(packed["cls_positions"] + packed["segment_ids"].max(axis=1, keepdims=True) >= 0):
    at = np.flatnonzero(packed["segment_ids"][b] == s + 1)
    if not len(at):
      continue
    for name in ("input_ids", "attention_mask", "token_type_ids"):
      row = np.zeros_like(packed[name][b])
      row[: len(at)] = packed[name][b, at]
      rows[name].append(row)
    positions, weights = packed["mlm_positions"][b], packed["mlm_weights"][b]
    mine = (positions >= at[0]) & (positions <= at[-1]) & (weights > 0)
    rows["mlm_positions"].append(np.where(mine, positions - at[0], 0))
    rows["mlm_labels"].append(packed["mlm_labels"][b])
    rows["mlm_weights"].append(weights * mine)
    for name in ("sop_label", "sop_weight"):
      rows[name].append(packed[name][b, s])
  return {name: np.stack(values) for name, values in rows.items()}


def test_packed_rows_cost_what_their_examples_cost_alone(dataset):
  cfg = AlbertConfig(
    vocab_size=1000, embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=64, max_position_embeddings=128, initializer_range=0.2,
  )  # fmt: skip
  data = DataConfig(str(dataset), seq_length=128, packing=6, short_seq_rate=0.0)
  packed = next(batching.train_batches(data, batch_size=4, seed=0))
  alone = one_example_a_row(packed)
  assert len(alone["input_ids"]) > 6
  assert alone["mlm_weights"].sum() == packed["mlm_weights"].sum() > 30
  params = init(cfg, jax.random.key(0))

  def loss(batch):
    sums = pretrain.sums(cfg, params, batch, None)
    return sum(c * sums[name][0] for name, c in pretrain.terms(1.0, 1.0, batch).items()), sums

  (a, sums_a), (b, sums_b) = loss(packed), loss(alone)
  np.testing.assert_allclose(a, b, atol=1e-5)
  for name in sums_a:
    np.testing.assert_allclose(sums_a[name], sums_b[name], rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_run_on_packed_rows(dataset, tmp_path):
  more = {"data__packing": 4, "data__short_seq_rate": 0.0, "data__seq_length": 128, "steps": 4, "eval_every": 4}
  code, _, err = run("train", *flags(dataset, tmp_path, **more), devices=2)
  assert code == 0, err
  assert {"mlm_loss", "sop_accuracy"} <= set(read(tmp_path)[-1])
