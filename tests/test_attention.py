"""Each way to attend against the plain formula; the Pallas kernel in its interpreter, cuDNN's by what goes into it."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax import AlbertConfig, UserError, apply, init
from albert_jax.model import attention
from albert_jax.training import sharding

L = 128
TOKENS = (128, 70, 1)


def setup(head_size=64, packed=False, **fields):
  """Returns (cfg, batch, q, k, v, d_context, which positions count)."""
  cfg = AlbertConfig(hidden_size=256, num_attention_heads=256 // head_size, **fields)
  q, k, v, d = (jax.random.normal(key, (3, L, 256), cfg.dtype) for key in jax.random.split(jax.random.key(0), 4))
  mask_BL = jnp.asarray(np.arange(L)[None] < np.array(TOKENS)[:, None], jnp.int32)
  batch = {"input_ids": mask_BL, "attention_mask": mask_BL}
  if packed:
    batch["segment_ids"] = mask_BL * (1 + (jnp.arange(L) > 40))[None]
    d = d * mask_BL[:, :, None].astype(d.dtype)  # Padding of packed rows attends to nothing, and nothing uses it.
  return cfg, batch, q, k, v, d


def plain(cfg, batch, q, k, v):
  q, k, v = (x.astype(jnp.float32).reshape(3, L, -1, cfg.head_size) for x in (q, k, v))
  segments = batch.get("segment_ids", jnp.ones((3, L)))
  mask = (segments[:, :, None] == segments[:, None, :]) & (batch["attention_mask"][:, None, :] > 0)
  scores = jnp.einsum("BLHK,BlHK->BHLl", q, k) / np.sqrt(cfg.head_size)
  probs = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30), axis=-1)
  return jnp.einsum("BHLl,BlHK->BLHK", probs, v).reshape(3, L, 256)


def outputs(attend, q, k, v, d):
  context, pull = jax.vjp(attend, q, k, v)
  return context, *pull(d.astype(context.dtype))


@pytest.mark.parametrize("name", ["xla", "xla long", "xla elsewhere", "pallas"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
  ("head_size", "dtype", "atol"),
  [
    (64, "float32", 2e-6),
    pytest.param(128, "float32", 2e-6, marks=pytest.mark.slow),
    pytest.param(32, "float32", 2e-6, marks=pytest.mark.slow),
    (64, "bfloat16", 0.03),
  ],
)
def test_context_and_gradients_are_the_formulas(name, packed, head_size, dtype, atol, monkeypatch):
  if name == "xla elsewhere":  # On a CPU the formula has a form of its own.
    name = "xla"
    monkeypatch.setattr(attention.nvidia, "target", lambda: types.SimpleNamespace(platform="tpu"))
  if name == "xla long":  # Long rows have one, too.
    name = "xla"
    monkeypatch.setattr(attention, "LONG_ON_CPU", L)
  cfg, batch, q, k, v, d = setup(head_size, packed, dtype=dtype, attention=name)
  attend, order = attention.make(cfg, batch, drops=False)
  assert order is None
  expected = outputs(lambda q, k, v: plain(cfg, batch, q, k, v), *(x.astype(jnp.float32) for x in (q, k, v, d)))
  actual = outputs(lambda q, k, v: attend(q, k, v, None), q, k, v, d)
  real = batch["attention_mask"][:, :, None]
  for a, b, weight in zip(actual, expected, (real if packed else 1, 1, 1, 1), strict=True):
    assert a.dtype == dtype
    rtol = 1e-6 if dtype == "float32" else 2**-7  # bfloat16 keeps eight bits.
    np.testing.assert_allclose(a.astype(jnp.float32) * weight, b * weight, atol=atol, rtol=rtol)


def test_a_row_without_tokens_is_finite_in_the_kernel():
  cfg, batch, q, k, v, d = setup(attention="pallas")
  batch["attention_mask"] = batch["attention_mask"].at[1].set(0)
  attend, _ = attention.make(cfg, batch, drops=False)
  assert all(jnp.isfinite(x).all() for x in outputs(lambda q, k, v: attend(q, k, v, None), q, k, v, d))


def test_the_kernel_is_given_the_rows_and_heads_of_its_device(monkeypatch):
  """The interpreter cannot run inside shard_map (jax 0.10 and 0.11), so the formula stands in for the kernel."""
  cfg, batch, q, k, v, d = setup(attention="pallas")
  batch, q, k, v, d = jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]), (batch, q, k, v, d))
  shapes = []

  def stand_in(head_size, interpret, q, k, v, q_ids, k_ids):
    shapes.append(q.shape)
    q, k, v = (x.reshape(*x.shape[:2], -1, head_size) for x in (q, k, v))
    mask = (q_ids[:, :, None] == k_ids[:, None, :])[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask).reshape(*q.shape[:2], -1)

  monkeypatch.setattr(attention, "_fused", stand_in)

  def run(batch, q, k, v, d):
    attend, _ = attention.make(cfg, batch, drops=False)
    return outputs(lambda q, k, v: attend(q, k, v, None), q, k, v, d)

  expected = run(batch, q, k, v, d)
  with jax.set_mesh(sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2), 4)):
    actual = jax.jit(run)(batch, q, k, v, d)
  assert shapes == [(4, L, 256), (1, L, 128)]
  for a, b in zip(actual, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_padding_is_moved_to_the_end_for_cudnn_and_back(monkeypatch):
  """cuDNN itself needs a GPU; a stand-in with its signature shows what it is given and where its answers go."""

  real = jax.nn.dot_product_attention

  def stand_in(q, k, v, key_value_seq_lengths, implementation):
    assert implementation == "cudnn"
    mask = jnp.arange(q.shape[1])[None] < key_value_seq_lengths[:, None]
    return real(q, k, v, mask=mask[:, None, None, :])

  cfg = AlbertConfig(vocab_size=50, embedding_size=12, hidden_size=16, num_hidden_layers=3, num_attention_heads=4,
                     intermediate_size=24, max_position_embeddings=16, initializer_range=0.2)  # fmt: skip
  params = init(cfg, jax.random.key(0))
  rng = np.random.default_rng(0)
  mask = rng.integers(0, 2, (3, 10))
  mask[0] = 1
  batch = {"input_ids": jnp.asarray(rng.integers(5, 50, (3, 10)), jnp.int32), "attention_mask": jnp.asarray(mask)}
  expected = apply(cfg, params, batch)
  monkeypatch.setattr(attention.jax.nn, "dot_product_attention", stand_in)
  monkeypatch.setattr(attention, "REFUSALS", {})
  actual = apply(dataclasses.replace(cfg, attention="cudnn"), params, batch)
  for name in ("sequence_output", "pooled_output", "mlm_logits"):
    np.testing.assert_allclose(actual[name], expected[name], atol=2e-5)


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"attention": "cudnn", "dtype": "bfloat16"}, "attention=cudnn is for NVIDIA GPUs; this is cpu"),
    ({"attention": "pallas"}, "needs rows of 128, 256, 384 or 512 tokens, not 100"),
  ],
)
def test_a_kernel_that_cannot_be_used_is_an_error_and_auto_is_not(fields, words):
  cfg, batch, *_ = setup(**fields)
  batch = {name: x[:, :100] for name, x in batch.items()}
  with pytest.raises(UserError, match=words):
    attention.make(cfg, batch, drops=False)
  attend, _ = attention.make(dataclasses.replace(cfg, attention="auto"), batch, drops=False)
  assert attend.func is attention._xla


def test_kernels_do_not_drop_out_attention_weights():
  cfg, batch, *_ = setup(attention="pallas", attention_probs_dropout_prob=0.1)
  with pytest.raises(UserError, match="attention_probs_dropout_prob=0"):
    attention.make(cfg, batch, drops=True)
  attention.make(cfg, batch, drops=False)


@pytest.mark.parametrize("fault", ["wrong", "raises"])
def test_auto_selects_a_kernel_only_after_checking_it(fault, monkeypatch, caplog):
  """As on a machine for which a kernel is the best: the real one is taken, one that is broken there is not."""
  cfg = AlbertConfig(vocab_size=50, embedding_size=8, hidden_size=128, num_hidden_layers=1, num_attention_heads=2,
                     intermediate_size=16, max_position_embeddings=128)  # fmt: skip
  batch = {"input_ids": jnp.ones((2, 128), jnp.int32), "attention_mask": jnp.ones((2, 128), jnp.int32)}
  monkeypatch.setattr(attention, "BEST", {"cpu": "pallas"})
  taken = []
  forms = dict(attention.ATTENTION)
  monkeypatch.setitem(attention.ATTENTION, "xla", lambda *a: taken.append("xla") or forms["xla"](*a))
  monkeypatch.setitem(attention.ATTENTION, "pallas", lambda *a: taken.append("pallas") or forms["pallas"](*a))
  attention._disagrees.cache_clear()
  attention.make(cfg, batch, drops=False)
  assert taken[-1] == "pallas"
  assert "is not used" not in caplog.text

  def broken(cfg, batch):
    attend, order = forms["xla"](cfg, batch)
    if fault == "raises":
      raise RuntimeError("no such instruction")
    return lambda q, k, v, keys: attend(q, k, 1.5 * v, keys), order

  monkeypatch.setitem(attention.ATTENTION, "pallas", broken)
  attention._disagrees.cache_clear()
  attention.make(cfg, batch, drops=False)
  assert taken[-1] == "xla"
  assert "attention=pallas is not used" in caplog.text
  attention._disagrees.cache_clear()
