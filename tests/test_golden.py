"""The original's own numbers: forward pass and ten LAMB steps of google-research/albert on TensorFlow 1.15."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_models import read_npz

import albert_jax
from albert_jax import paths
from albert_jax.convert import google_tf1
from albert_jax.convert.mapping import Rules
from albert_jax.model import layer_axes
from albert_jax.tasks import pretrain
from albert_jax.training import optimizer
from albert_jax.training.schedule import schedule

pytestmark = pytest.mark.realdata


@pytest.fixture(scope="module")
def golden(real_data):
  """Returns (config, parameters, what the original computed with them)."""
  return *albert_jax.load(real_data / "google_tf1"), read_npz(real_data / "google_tf1" / "golden.npz")


def batch_of(golden):
  return {
    "input_ids": jnp.asarray(golden["input_ids"]),
    "attention_mask": jnp.asarray(golden["input_mask"]),
    "token_type_ids": jnp.asarray(golden["segment_ids"]),
    "mlm_positions": jnp.asarray(golden["masked_lm_positions"]),
    "mlm_labels": jnp.asarray(golden["masked_lm_ids"]),
    "mlm_weights": jnp.asarray(golden["masked_lm_weights"]),
    "sop_label": jnp.asarray(golden["sop_labels"]),
    "sop_weight": jnp.ones(len(golden["sop_labels"])),
  }


def loss_of(cfg, params, batch):
  sums = pretrain.sums(cfg, params, batch, None)
  return sum(c * sums[name][0] for name, c in pretrain.terms(1.0, 1.0, batch).items())


def test_forward_pass_is_the_originals(golden):
  cfg, params, expected = golden
  batch = batch_of(expected)
  out = albert_jax.apply(cfg, params, batch)
  real = expected["input_mask"] > 0
  np.testing.assert_allclose(out["sequence_output"][real], expected["sequence_output"][real], atol=1e-5, rtol=0)
  np.testing.assert_allclose(out["pooled_output"], expected["pooled_output"], atol=1e-5, rtol=0)
  mlm = jax.nn.log_softmax(out["mlm_logits"]).reshape(expected["mlm_log_probs"].shape)
  np.testing.assert_allclose(mlm, expected["mlm_log_probs"], atol=1e-5, rtol=0)
  np.testing.assert_allclose(jax.nn.log_softmax(out["sop_logits"]), expected["sop_log_probs"], atol=1e-5, rtol=0)
  sums = pretrain.sums(cfg, params, batch, None)
  for name in ("mlm_loss", "sop_loss"):
    total, weight = sums[name]
    np.testing.assert_allclose(total / weight, expected[name], atol=1e-5, rtol=0)


def ten_steps(cfg, params, expected, gradients):
  """Ten LAMB steps from the checkpoint. gradients(params) -> (loss, grads).

  Returns:
    losses, final parameters.
  """
  opt = optimizer.OptimizerConfig(
    name="lamb", learning_rate=float(expected["lamb_lr"]), warmup_steps=int(expected["lamb_warmup"])
  )
  tx, rate = optimizer.make(opt, layer_axes(cfg, params)), schedule(opt, int(expected["lamb_steps"]))

  @jax.jit
  def step(params, state, learning_rate):
    loss, grads = gradients(params)
    updates, state = tx.update(grads, state, params)
    return jax.tree.map(lambda p, u: p - learning_rate * u, params, updates), state, loss

  state, losses = tx.init(params), []
  for n in range(10):
    # That run read its step counter after the increment, so its first update has the rate of step 1.
    params, state, loss = step(params, state, rate(n + 1))
    losses.append(float(loss))
  return losses, params


def assert_final(cfg, params, expected, atol):
  theirs = {name[len("final|") : -len(":0")]: expected[name] for name in expected if name.startswith("final|")}
  theirs = paths.flatten(google_tf1.params_of(cfg, theirs, "golden.npz", Rules()))
  for path, value in paths.flatten(params).items():
    np.testing.assert_allclose(value, theirs[path], atol=atol, rtol=0, err_msg=path)


def test_ten_steps_of_lamb_are_the_originals(golden):
  """With the gradient norm TensorFlow takes off the TPU, everything agrees.

  There an embedding's gradient is a list of rows, one a token, and the norm to clip by is that of the list, before
  rows of the same index are added up. For the two segment rows it makes a difference of 1 to 2 %. (On a TPU the
  original looks up by matrix product and has the ordinary norm, which is ours.) A model with one segment row per
  token has exactly that list as its gradient.
  """
  cfg, params, expected = golden
  batch = batch_of(expected)
  types_BL = batch["token_type_ids"]
  wide = dataclasses.replace(cfg, type_vocab_size=types_BL.size)
  rows_BL = jnp.arange(types_BL.size).reshape(types_BL.shape)

  def gradients(params):
    table = params["embeddings"]["token_type"]["embedding"]
    embeddings = {**params["embeddings"], "token_type": {"embedding": table[types_BL.reshape(-1)]}}
    loss, grads = jax.value_and_grad(lambda params: loss_of(wide, params, {**batch, "token_type_ids": rows_BL}))(
      {**params, "embeddings": embeddings}
    )
    scale = 1 / jnp.maximum(optax.tree.norm(grads), 1.0)
    rows = grads["embeddings"]["token_type"]["embedding"]
    grads["embeddings"]["token_type"]["embedding"] = jnp.zeros_like(table).at[types_BL.reshape(-1)].add(rows)
    return loss, optax.tree.scale(scale, grads)

  losses, final = ten_steps(cfg, params, expected, gradients)
  np.testing.assert_allclose(losses, expected["lamb_losses"], rtol=1e-6)
  assert_final(cfg, final, expected, atol=1e-5)


def test_ten_steps_of_lamb_with_the_ordinary_norm(golden):
  cfg, params, expected = golden
  batch = batch_of(expected)

  def gradients(params):
    return jax.value_and_grad(lambda params: loss_of(cfg, params, batch))(params)

  losses, final = ten_steps(cfg, params, expected, gradients)
  np.testing.assert_allclose(losses, expected["lamb_losses"], rtol=1e-4)
  assert_final(cfg, final, expected, atol=3e-4)  # 1e-4 is out of reach here: see the test above.
