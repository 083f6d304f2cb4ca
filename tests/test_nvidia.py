"""The forms for NVIDIA GPUs compute what the plain ones compute; here they run on a CPU."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax import model, nvidia
from albert_jax.bench import contestants, plan
from albert_jax.model import attention, layers
from albert_jax.tasks import pretrain


def close(value, expected, limit=1e-5):
  for a, b in zip(jax.tree.leaves(value), jax.tree.leaves(expected), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_allclose(a, b, rtol=limit, atol=limit * float(jnp.abs(b).max()))


def gradients(function, *arrays):
  """Returns the result and all gradients of a sum with random weights."""
  y, back = jax.vjp(function, *arrays)
  return y, back(jax.random.normal(jax.random.key(9), y.shape, y.dtype))


def test_a_layer_norm_has_the_same_gradients():
  x, scale, bias = (jax.random.normal(jax.random.key(n), shape) for n, shape in enumerate([(40, 24), (24,), (24,)]))

  def plain(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * scale[None] + bias[None]

  close(
    gradients(functools.partial(nvidia.layer_norm, 1e-12, "float32"), x, scale, bias), gradients(plain, x, scale, bias)
  )


@pytest.mark.parametrize("name", sorted(layers.ACTIVATIONS))
def test_an_activation_has_the_same_gradient(name):
  function, x = layers.ACTIVATIONS[name], jax.random.normal(jax.random.key(0), (7, 5, 3)) * 3
  close(gradients(functools.partial(nvidia.in_float32, function), x), gradients(function, x))


def test_an_activation_of_bfloat16_is_rounded_once():
  x = jnp.linspace(-4, 4, 4001).astype(jnp.bfloat16)
  expected = jax.nn.gelu(x.astype(jnp.float32), approximate=True)
  worst = jnp.abs(nvidia.in_float32(layers.ACTIVATIONS["gelu_new"], x) - expected) / jnp.maximum(
    jnp.abs(expected), 1e-3
  )
  assert float(worst.max()) <= 2**-8


@pytest.mark.parametrize("rows", [50, nvidia.SMALL_TABLE + 1])
def test_the_gradient_of_a_table_sums_the_tokens_of_each_row(rows):
  table = jax.random.normal(jax.random.key(0), (rows, 8))
  ids = jax.random.randint(jax.random.key(1), (3, 37), 0, 20).at[0, 0].set(rows - 1)
  close(gradients(lambda t: nvidia.lookup(t, ids), table), gradients(lambda t: t[ids], table))


def test_the_gradient_of_a_large_table_is_summed_in_one_order():
  """Float32 sums in another order differ in their last bits; equal ids must give equal bits wherever they stand."""
  rows = nvidia.SMALL_TABLE + 1
  ids = jax.random.randint(jax.random.key(1), (1, 64), 0, 5)
  d = jax.random.normal(jax.random.key(2), (1, 64, 4)) * 10.0 ** jax.random.randint(
    jax.random.key(3), (1, 64, 1), -3, 3
  )
  order = jnp.argsort(ids[0], stable=True)
  _, back = jax.vjp(lambda t: nvidia.lookup(t, ids), jnp.zeros((rows, 4)))
  _, back_sorted = jax.vjp(lambda t: nvidia.lookup(t, jnp.sort(ids)), jnp.zeros((rows, 4)))
  np.testing.assert_array_equal(back(d)[0], back_sorted(d[:, order])[0])


def test_vectors_at_positions_have_the_same_gradient_also_when_a_position_repeats():
  x = jax.random.normal(jax.random.key(0), (3, 11, 4))
  positions = jnp.array([[1, 5, 10, 0, 0], [0, 0, 0, 0, 0], [3, 2, 3, 9, 1]])
  plain = functools.partial(jnp.take_along_axis, indices=positions[:, :, None], axis=1)
  close(gradients(lambda x: nvidia.at_positions(x, positions), x), gradients(plain, x))


def test_reordering_takes_the_gradient_back():
  x = jax.random.normal(jax.random.key(0), (3, 11, 4))
  order = jnp.argsort(jax.random.uniform(jax.random.key(1), (3, 11)), axis=1)
  plain = functools.partial(jnp.take_along_axis, indices=order[:, :, None], axis=1)
  close(gradients(lambda x: nvidia.reordered(x, order, jnp.argsort(order, axis=1)), x), gradients(plain, x))


@pytest.mark.parametrize("packing", [1, 3])
def test_the_whole_model_has_the_same_loss_and_gradients(packing, monkeypatch):
  cfg = plan.model_of("toy", dtype="float32", attention="xla")
  cfg = dataclasses.replace(cfg, vocab_size=nvidia.SMALL_TABLE + 7, num_hidden_layers=3)
  params = model.init(cfg, jax.random.key(0))
  batch = contestants.make_batch(cfg, 3, 32, 5, packing)

  def run():
    def loss(params):
      sums = pretrain.sums(cfg, params, batch, jax.vmap(jax.random.key)(jnp.arange(3)))
      return sums["mlm_loss"][0] + sums["sop_loss"][0]

    return jax.jit(jax.value_and_grad(loss))(params)

  expected = run()
  monkeypatch.setattr(nvidia, "is_target", lambda: True)
  close(run(), expected, 2e-5)


@pytest.mark.parametrize(
  ("fields", "failing", "expected"),
  [
    ({}, (), 6),  # The kernel works: all layers, without a loop.
    ({}, (2,), 1),  # It works only where a program calls it once: a loop.
    ({}, (1, 2), 6),  # It never works: the plain form does.
    ({"attention": "xla"}, (2,), 6),
    ({"scan_unroll": 3}, (2,), 3),
  ],
)
def test_how_many_layers_a_turn_computes_on_a_gpu(fields, failing, expected, monkeypatch):
  cfg = plan.model_of("toy", num_hidden_layers=6, **fields)
  monkeypatch.setattr(nvidia, "is_target", lambda: True)
  monkeypatch.setattr(attention, "_why_not", lambda name, cfg, batch, drops, calls: "fails" if calls in failing else "")
  assert attention.layers_a_turn(cfg, {}, drops=False) == expected


def test_elsewhere_a_turn_computes_one_layer():
  assert attention.layers_a_turn(plan.model_of("toy"), {}, drops=False) == 1


def test_only_the_backward_pass_of_attention_is_marked_as_deterministic():
  """XLA compares the marks of equal calls; see `mark_attention_deterministic`."""
  from jax._src.cudnn import fused_attention_stablehlo as fused
  from jax._src.interpreters import mlir
  from jax._src.lib.mlir import ir

  nvidia.mark_attention_deterministic()
  marks = []
  with mlir.make_ir_context():
    shapes = (2, 4, 128, 128, ir.BF16Type.get())
    rest = (0.125, 42, 0.0, fused.MaskType.PADDING, 0, None, 1, False)
    for is_backward in (False, True):
      text = fused.create_dot_product_attention_backend_config(*shapes, *rest, is_bwd=is_backward)
      marks.append(json.loads(text)["cudnn_fmha_backend_config"].get("force_deterministic"))
  assert marks == [None, True]


@pytest.mark.slow
@pytest.mark.parametrize("packing", [1, 3])
def test_steps_on_four_devices_have_the_same_losses(packing, monkeypatch):
  cfg = plan.model_of("toy", dtype="float32", attention="xla", vocab_size=nvidia.SMALL_TABLE + 7)
  params = jax.device_get(model.init(cfg, jax.random.key(0)))
  batch = contestants.make_batch(cfg, 8, 32, 5, packing)

  def losses():
    step = contestants.Ours(cfg, params, batch, devices=jax.devices()[:4])
    return [step() for _ in range(3)]

  expected = losses()
  monkeypatch.setattr(nvidia, "is_target", lambda: True)
  np.testing.assert_allclose(losses(), expected, rtol=1e-6)
