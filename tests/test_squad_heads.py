"""The heads that answer questions: the paper's against the original's own numbers, the plain one by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_models import SMALL, random_params, read_npz

import albert_jax
from albert_jax import paths
from albert_jax.errors import UserError
from albert_jax.model import task_heads
from albert_jax.tasks.squad import answers as squad_answers
from albert_jax.tasks.squad import heads as squad_heads
from albert_jax.tasks.squad import task as squad
from albert_jax.tasks.squad.answers import Search


@pytest.fixture(scope="module")
def golden(real_data):
  """Returns (config, parameters, batch, what the original computed of it)."""
  folder = real_data / "google_tf1_squad_v2"
  cfg, params = albert_jax.load(folder)
  expected = read_npz(folder / "golden.npz")
  batch = {
    "input_ids": expected["input_ids"], "attention_mask": expected["input_mask"],
    "token_type_ids": expected["segment_ids"], "allowed": 1 - expected["p_mask"],
    "start": expected["start_positions"], "end": expected["end_positions"],
    "impossible": expected["is_impossible"], "weight": np.ones(3, np.float32),
  }  # fmt: skip
  return cfg, params, {name: jnp.asarray(value) for name, value in batch.items()}, expected


@pytest.mark.realdata
class TestOriginal:
  """run_squad_v2.py of google-research/albert on TensorFlow 1.15."""

  def test_training_graph(self, golden):
    cfg, params, batch, expected = golden
    part, x_BLD = params["squad_v2"], albert_jax.apply(cfg, params, batch)["sequence_output"]
    start = squad_heads.beam_start(part, x_BLD, batch["allowed"])
    end = squad_heads.beam_end(part, x_BLD, batch["allowed"], batch["start"][:, None])[:, 0]
    np.testing.assert_allclose(start, expected["train_start_log_probs"], atol=1e-5, rtol=1e-6)
    np.testing.assert_allclose(end, expected["train_end_log_probs"], atol=1e-5, rtol=1e-6)
    logits = squad_heads.beam_no_answer(part, x_BLD, start, 0.0, None)
    np.testing.assert_allclose(logits, expected["train_cls_logits"], atol=1e-5, rtol=0)

  def test_loss_and_beam_search(self, golden):
    cfg, params, batch, expected = golden
    head, search = squad_heads.get("beam"), Search(start_n_top=5, end_n_top=5)
    assert search.start_n_top == expected["start_n_top"] and search.end_n_top == expected["end_n_top"]
    total, weight = squad.sums(cfg, head, params, batch, None)["loss"]
    np.testing.assert_allclose(total / weight, expected["train_loss"], atol=1e-5, rtol=0)
    scores = squad_answers.spans(cfg, head, search, params, batch)
    np.testing.assert_array_equal(scores["start_index"], expected["infer_start_top_index"])
    np.testing.assert_array_equal(scores["end_index"].reshape(3, -1), expected["infer_end_top_index"])
    for ours, theirs in (
      ("start_score", "start_top_log_probs"), ("end_score", "end_top_log_probs"), ("null", "cls_logits")
    ):  # fmt: skip
      theirs = expected[f"infer_{theirs}"]
      np.testing.assert_allclose(scores[ours].reshape(theirs.shape), theirs, atol=1e-5, rtol=0)


HEADS = sorted(squad_heads.HEADS)
CFG = dataclasses.replace(
  SMALL, num_hidden_layers=1, max_position_embeddings=64, classifier_dropout_prob=0.0, remat="none"
)
SEARCH = Search(n_best=15, start_n_top=3, end_n_top=3)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(cfg, name, params, batch, keys=None):
  """Returns (the sums, the best spans) of a batch."""
  head = squad_heads.get(name)
  return squad.sums(cfg, head, params, batch, keys), squad_answers.spans(cfg, head, SEARCH, params, batch)


CFG = dataclasses.replace(
  SMALL, num_hidden_layers=1, max_position_embeddings=64, classifier_dropout_prob=0.0, remat="none"
)
sums = jax.jit(squad.sums, static_argnums=(0, 1))
spans = jax.jit(squad_answers.spans, static_argnums=(0, 1, 2))
init = jax.jit(squad.init, static_argnums=(0, 1))


def rows(lengths, length, seed=0):
  """Returns a batch whose rows are [CLS] a question of 3 [SEP] passage [SEP]."""
  rng = np.random.default_rng(seed)
  positions, ends = np.arange(length)[None, :], np.array(lengths)[:, None]
  mask = positions < ends
  passage = (positions >= 5) & (positions < ends - 1)
  ids = np.where(mask, np.random.default_rng(1).integers(5, SMALL.vocab_size, (len(lengths), 64))[:, :length], 0)
  return {
    "input_ids": ids.astype(np.int32), "attention_mask": mask.astype(np.int32),
    "token_type_ids": ((positions >= 5) & mask).astype(np.int32),
    "allowed": (passage | (positions == 0)).astype(np.int32),
    "start": rng.integers(5, 8, len(lengths)).astype(np.int32), "end": np.array(lengths, np.int32) - 2,
    "impossible": np.zeros(len(lengths), np.int32), "weight": np.ones(len(lengths), np.float32),
  }  # fmt: skip


def params_of(name):
  return random_params(CFG, (), {squad_heads.get(name).part: 2})


@pytest.mark.parametrize("name", HEADS)
class TestEveryHead:
  def test_names_are_those_that_checkpoints_have(self, name):
    head = squad_heads.get(name)
    fresh = paths.flatten(jax.eval_shape(functools.partial(squad.init, CFG, head), jax.random.key(0))[head.part])
    assert {path: leaf.shape for path, leaf in fresh.items()} == task_heads.HEADS[head.part](CFG.hidden_size, 2)

  def test_padding_changes_nothing(self, name):
    params, lengths = params_of(name), [20, 32, 25]
    (short, scores), (long, scores_long) = (run(CFG, name, params, rows(lengths, length)) for length in (32, 64))
    for key in short:
      np.testing.assert_allclose(short[key], long[key], rtol=1e-5)
    for key in scores:
      np.testing.assert_allclose(scores[key], scores_long[key], rtol=1e-4, atol=1e-5)

  def test_rows_that_fill_up_weigh_nothing(self, name):
    params, batch = params_of(name), rows([20, 30, 32], 32)
    batch["weight"] = np.float32([1, 1, 0])
    whole, _ = run(CFG, name, params, batch)
    part, _ = run(CFG, name, params, {key: np.concatenate([value[:2], value[:1]]) for key, value in batch.items()} | {
      "weight": batch["weight"]})  # fmt: skip
    for key in whole:
      np.testing.assert_allclose(whole[key], part[key], rtol=1e-5)
      assert whole[key][1] == 2

  def test_only_the_passage_is_searched(self, name):
    batch = rows([20, 30, 32], 32)
    _, scores = jax.device_get(run(CFG, name, params_of(name), batch))
    for part in ("start", "end"):
      index, score = scores[f"{part}_index"].reshape(3, -1), scores[f"{part}_score"].reshape(3, -1)
      real = score > -1e29
      allowed = np.take_along_axis(batch["allowed"], index, axis=1)
      np.testing.assert_array_equal(allowed[real], 1)
      assert real.any() and (name == "beam" or (index[real] > 0).all())

  def test_it_learns(self, name):
    """A few steps on the head alone find the labelled spans, and that the second row has none."""
    batch, head = rows([20, 30, 32], 32), squad_heads.get(name)
    batch["start"][1], batch["end"][1], batch["impossible"][1] = 0, 0, 1
    x_BLD = 3 * jax.random.normal(jax.random.key(0), (3, 32, CFG.hidden_size))
    part = jax.jit(head.init, static_argnums=0)(CFG, jax.random.key(1))
    tx = optax.adam(0.1)

    @jax.jit
    def train(part):
      def step(state, _):
        part, opt = state
        loss, grads = jax.value_and_grad(lambda p: jnp.mean(head.losses(CFG, p, x_BLD, batch, None)["loss"]))(part)
        updates, opt = tx.update(grads, opt)
        return (optax.apply_updates(part, updates), opt), loss

      (part, _), losses = jax.lax.scan(step, (part, tx.init(part)), length=200)
      return losses, head.spans(part, x_BLD, batch, SEARCH)

    losses, scores = jax.device_get(train(part))
    assert losses[-1] < 0.1 * losses[0]
    np.testing.assert_array_equal(scores["start_index"][[0, 2], 0], batch["start"][[0, 2]])
    np.testing.assert_array_equal(scores["end_index"][[0, 2], 0, 0], batch["end"][[0, 2]])
    score = scores["null"] - (scores["start_score"][:, 0] + scores["end_score"][:, 0, 0] if head.null_is_score else 0)
    np.testing.assert_array_equal(score > 0, batch["impossible"] > 0)


def test_plain_spans_by_hand():
  params, batch = params_of("span"), rows([20, 32, 25], 32)
  x = np.asarray(albert_jax.apply(CFG, params, batch)["sequence_output"])
  logits = x @ params["span"]["kernel"] + params["span"]["bias"][None, None, :]
  total = 0.0
  for row, length in enumerate([20, 32, 25]):
    for i, label in enumerate(("start", "end")):
      z = logits[row, :length, i].astype(np.float64)
      total += 0.5 * (np.log(np.exp(z - z.max()).sum()) + z.max() - z[batch[label][row]])
  sums, scores = run(CFG, "span", params, batch)
  np.testing.assert_allclose(sums["loss"][0], total, rtol=1e-5)
  np.testing.assert_allclose(scores["null"], logits[:, 0].sum(axis=1), rtol=1e-4, atol=1e-5)
  expected = [5 + np.argsort(-logits[row, 5 : length - 1, 0])[:14] for row, length in enumerate([20, 32, 25])]
  np.testing.assert_array_equal(scores["start_index"][:, :14], expected)


def test_dropout_of_the_answerability():
  head, params, batch = squad_heads.get("beam"), params_of("beam"), rows([20, 32], 32)
  cfg, x_BLD = dataclasses.replace(CFG, classifier_dropout_prob=0.5), jnp.asarray(batch["input_ids"])[:, :, None] / 40
  x_BLD = jnp.broadcast_to(x_BLD, (2, 32, CFG.hidden_size))
  keys = jax.random.split(jax.random.key(0), 2)
  plain, dropped, again = (head.losses(cfg, params["squad_v2"], x_BLD, batch, k) for k in (None, keys, keys))
  assert (plain["answer_loss"] != dropped["answer_loss"]).any()
  np.testing.assert_array_equal(dropped["answer_loss"], again["answer_loss"])
  np.testing.assert_array_equal(plain["span_loss"], dropped["span_loss"])


def test_an_unknown_head():
  with pytest.raises(UserError, match=r"task\.head='spam' is unknown; use one of span, beam"):
    squad_heads.get("spam")
