"""A model turned into another starts where the first one stopped."""

import dataclasses

import jax
import numpy as np
import pytest
from small_models import SMALL, assert_same, random_params
from test_tokenizer import train

import albert_jax
from albert_jax import paths
from albert_jax.convert import surgery
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError

BATCH = {
  "input_ids": np.random.default_rng(0).integers(0, 40, (3, 9)).astype(np.int32),
  "attention_mask": (np.arange(9) < np.array([[9], [5], [2]])).astype(np.int32),
}


def model(cfg, seed=0, heads=None):
  return jax.tree.map(lambda x: 0.4 * x, random_params(cfg, heads=heads, seed=seed))


def sizes(params):
  return {path: x.shape for path, x in paths.flatten(params).items()}


def outputs(cfg, params):
  return {name: np.asarray(x) for name, x in albert_jax.apply(cfg, params, BATCH).items()}


class TestVocabulary:
  def test_shared_pieces_keep_their_rows(self, tmp_path):
    old = Tokenizer(train(tmp_path / "old.model"))
    new = Tokenizer(
      train(tmp_path / "new.model", control_symbols="[MASK],[SEP],[CLS]", user_defined_symbols="the,zebra")
    )
    cfg = dataclasses.replace(SMALL, vocab_size=old.vocab_size)
    params = model(cfg)
    new_cfg, changed, kept = surgery.new_vocabulary(cfg, params, old, new)
    assert new_cfg.vocab_size == new.vocab_size
    shared = set(old.pieces) & set(new.pieces)
    assert kept == len(shared)
    for piece in shared:
      for path in ("embeddings/word/embedding", "mlm/bias"):
        before, after = (paths.flatten(tree)[path] for tree in (params, changed))
        np.testing.assert_array_equal(after[new.pieces.index(piece)], before[old.pieces.index(piece)])
    fresh = changed["embeddings"]["word"]["embedding"][new.pieces.index("zebra")]
    assert 0 < np.abs(fresh).max() <= 2 * cfg.initializer_range
    assert changed["mlm"]["bias"][new.pieces.index("zebra")] == 0
    assert outputs(new_cfg, changed)["mlm_logits"].shape == (3, 9, new.vocab_size)

  def test_another_models_vocabulary(self, tmp_path):
    tokenizer = Tokenizer(train(tmp_path / "x.model"))
    with pytest.raises(UserError, match="the model only 40 rows"):
      surgery.new_vocabulary(SMALL, model(SMALL), tokenizer, tokenizer)


class TestPositions:
  def test_tile(self):
    params = model(SMALL)
    cfg, changed = surgery.longer(SMALL, params, 40)
    table, old = changed["embeddings"]["position"]["embedding"], params["embeddings"]["position"]["embedding"]
    np.testing.assert_array_equal(table, np.concatenate([old, old, old[:8]]))
    ours, theirs = outputs(cfg, changed), outputs(SMALL, params)
    np.testing.assert_array_equal(ours["sequence_output"], theirs["sequence_output"])

  def test_interpolate(self):
    cfg, changed = surgery.longer(SMALL, model(SMALL), 31, "interpolate")
    table, old = changed["embeddings"]["position"]["embedding"], model(SMALL)["embeddings"]["position"]["embedding"]
    np.testing.assert_allclose(table[::2], old, rtol=1e-6)
    np.testing.assert_allclose(table[1], (old[0] + old[1]) / 2, rtol=1e-5)
    assert cfg.max_position_embeddings == 31

  def test_unknown(self):
    with pytest.raises(UserError, match="use tile or interpolate"):
      surgery.longer(SMALL, model(SMALL), 31, "guess")


class TestDepth:
  def test_shared_layers_do_not_change(self):
    params = model(SMALL)
    cfg, changed = surgery.restructured(SMALL, params, num_hidden_layers=24)
    assert cfg == dataclasses.replace(SMALL, num_hidden_layers=24)
    assert_same(changed, params)

  def test_layers_of_their_own_are_repeated(self):
    old = dataclasses.replace(SMALL, num_hidden_layers=2, share="attention")
    params = model(old)
    _, changed = surgery.restructured(old, params, num_hidden_layers=5)
    assert_same(changed["attention"], params["attention"])
    assert_same(changed["ffn"], jax.tree.map(lambda x: x[[0, 0, 0, 1, 1]], params["ffn"]))

  @pytest.mark.parametrize(
    "fields", [{"num_hidden_groups": 2}, {"num_hidden_groups": 4}, {"share": "ffn"}, {"unshared_ends": 1}]
  )
  @pytest.mark.parametrize("inner", [1, 2])
  def test_loosening_what_is_shared_computes_the_same(self, fields, inner):
    old = dataclasses.replace(SMALL, inner_group_num=inner)
    params = model(old)
    cfg, changed = surgery.restructured(old, params, **fields)
    assert albert_jax.param_count(changed) > albert_jax.param_count(params)
    ours, theirs = outputs(cfg, changed), outputs(old, params)
    for name in theirs:
      np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5)

  def test_a_model_with_unshared_ends_can_become_one_that_shares_nothing(self):
    old = dataclasses.replace(SMALL, unshared_ends=1)
    params = model(old)
    cfg, changed = surgery.restructured(old, params, share="none")
    assert cfg.unshared_ends == 0
    assert_same(changed["ffn"], jax.tree.map(lambda x: x[[0, 1, 1, 2]], params["ffn"]))

  def test_low_rank_differences_become_part_of_unshared_matrices(self):
    old = dataclasses.replace(SMALL, layer_rank=2, inner_group_num=2)
    params = jax.tree.map(lambda x: x + 0.1, model(old))
    cfg, changed = surgery.restructured(old, params, share="none")
    assert cfg.layer_rank == 0
    ours, theirs = outputs(cfg, changed), outputs(old, params)
    for name in theirs:
      np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5)

  @pytest.mark.parametrize("fields", [{}, {"inner_group_num": 2}, {"arch": "modern"}])
  def test_differences_of_full_rank_compute_the_same(self, fields):
    old = dataclasses.replace(SMALL, share="none", **fields)
    params = model(old)
    cfg, changed, kept = surgery.with_low_rank_differences(old, params, layer_rank=SMALL.hidden_size)
    assert (cfg.share, cfg.layer_rank) == ("matrices", SMALL.hidden_size)
    assert kept == pytest.approx(1)
    assert sizes(changed) == sizes(model(cfg))
    ours, theirs = outputs(cfg, changed), outputs(old, params)
    for name in theirs:
      np.testing.assert_allclose(ours[name], theirs[name], atol=2e-5)

  @pytest.mark.parametrize("share", ["matrices", "all"])
  def test_a_higher_rank_keeps_more(self, share):
    old = dataclasses.replace(SMALL, share="none")
    params = model(old)
    keeps = [
      surgery.with_low_rank_differences(old, params, layer_rank=rank, share=share, num_hidden_groups=2)[2]
      for rank in (1, 2, 4)
    ]
    assert 0 < keeps[0] < keeps[1] < keeps[2] < 1
    cfg, changed, _ = surgery.with_low_rank_differences(old, params, layer_rank=2, share=share, num_hidden_groups=2)
    assert sizes(changed) == sizes(model(cfg))
    mean = params["ffn"]["up"]["kernel"][2:].mean(axis=0)
    np.testing.assert_allclose(changed["ffn"]["up"]["kernel"][1], mean, atol=1e-7)

  @pytest.mark.parametrize(
    ("share", "fields", "message"),
    [
      ("all", {"layer_rank": 2}, "several layers that share nothing, and this one has share=all and 4 layers"),
      ("none", {"layer_rank": 99}, "must be from 1 to 12"),
      ("none", {"layer_rank": 2, "share": "attention"}, "use all or matrices"),
    ],
  )
  def test_differences_that_cannot_be_made_are_refused(self, share, fields, message):
    old = dataclasses.replace(SMALL, share=share)
    with pytest.raises(UserError, match=message):
      surgery.with_low_rank_differences(old, model(old), **fields)

  def test_from_group_0(self):
    old = dataclasses.replace(SMALL, num_hidden_groups=2)
    params = model(old)
    _, changed = surgery.restructured(old, params, num_hidden_groups=4, from_group0=True)
    assert_same(changed["ffn"], jax.tree.map(lambda x: x[[0, 0, 0, 0]], params["ffn"]))
    _, changed = surgery.restructured(old, params, num_hidden_groups=4)
    assert_same(changed["ffn"], jax.tree.map(lambda x: x[[0, 0, 1, 1]], params["ffn"]))

  def test_weights_are_not_thrown_away_silently(self):
    old = dataclasses.replace(SMALL, share="none")
    with pytest.raises(UserError, match="4 sets of attention weights cannot become 1"):
      surgery.restructured(old, model(old), share="all")
