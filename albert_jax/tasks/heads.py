"""Layers on top of the encoder, losses, and batched prediction, shared by several tasks."""

import functools
import itertools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from albert_jax import model
from albert_jax.data.finetuning import batching
from albert_jax.model import AlbertConfig
from albert_jax.model.layers import dropout, initializer
from albert_jax.types import Batch, Params

BATCH = 64  # the most rows of a batch in prediction
# The most tokens of a batch. Larger batches are slower on CPUs (base, one core: 555 tokens/s in batches of 512, 485 in
# batches of 2048), because the activations exceed the cache.
TOKENS, TOKENS_A_CORE = 32768, 512


def encoder(cfg: AlbertConfig, key: jax.Array, pooler: bool) -> Params:
  """Makes fresh parameters without the heads of pre-training.

  Args:
    cfg: the sizes of the model.
    key: a jax.random key.
    pooler: whether the task uses the pooler.

  Returns:
    the parameters.
  """
  left_out = ("mlm", "sop") if pooler else ("mlm", "sop", "pooler")
  return {name: part for name, part in model.init(cfg, key).items() if name not in left_out}


def with_head(cfg: AlbertConfig, key: jax.Array, head: str, size: int, pooler: bool = False) -> Params:
  """Makes fresh parameters of an encoder with a dense layer on top.

  Args:
    cfg: the sizes of the model.
    key: a jax.random key.
    head: the name of the layer in the parameters.
    size: how many outputs it has.
    pooler: whether the task uses the pooler.

  Returns:
    the parameters.
  """
  key_encoder, key_head = jax.random.split(key)
  return {**encoder(cfg, key_encoder, pooler), head: dense(cfg, key_head, cfg.hidden_size, size)}


def dense(cfg: AlbertConfig, key: jax.Array, size_in: int, size_out: int) -> Params:
  """Makes a dense layer {"kernel" [in, out], "bias" [out]} with the encoder's initialiser."""
  return {"kernel": initializer(cfg)(key, (size_in, size_out)), "bias": jnp.zeros(size_out)}


def affine(layer: Params, x: jax.Array) -> jax.Array:
  """Applies a dense layer in float32, [..., in] -> [..., out]."""
  return jnp.dot(x.astype(jnp.float32), layer["kernel"]) + layer["bias"].reshape((1,) * (x.ndim - 1) + (-1,))


def at_positions(cfg: AlbertConfig, head: str, params: Params, batch: Batch, key: jax.Array | None = None) -> jax.Array:
  """Applies a head to the encoder's output at every position.

  Args:
    cfg: the sizes of the model.
    head: the name of a dense layer in `params`.
    params: the parameters.
    batch: input_ids and so on, [B, L].
    key: a key a row [B], for dropout, or None.

  Returns:
    float32 [B, L, C].
  """
  x_BLD = model.apply(cfg, params, model.inputs(batch), key)["sequence_output"]
  return affine(params[head], dropout(x_BLD, cfg.classifier_dropout_prob, head_keys(key, 0)))


def head_keys(keys_B: jax.Array | None, name_number: int) -> jax.Array | None:
  """Derives the keys of a head's dropout from those of the rows, so that rows may be on any device."""
  return None if keys_B is None else jax.vmap(jax.random.fold_in, (0, None))(keys_B, 1_000_000 + name_number)


def cross_entropy(
  logits: jax.Array, labels: jax.Array, weights: jax.Array, smoothing: float = 0.0
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
  """Sums the cross entropy of labels, and the correct answers.

  Args:
    logits: float32 [..., C].
    labels: int [...]. A label outside 0 to C - 1 makes the loss NaN.
    weights: float32 [...].
    smoothing: label smoothing.

  Returns:
    ((sum of losses, sum of weights), (sum of correct answers, sum of weights)).
  """
  losses, exists, of_label = _losses(logits, labels, smoothing)
  weight = jnp.sum(weights)
  hits = jnp.sum(weights * (exists & (of_label == 0)))
  return (jnp.sum(weights * losses), weight), (hits, weight)


def losses_and_hits(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> tuple[jax.Array, jax.Array]:
  """Returns the loss of each label, and whether its logit is the highest.

  Args:
    logits: see `cross_entropy`.
    labels: see `cross_entropy`.
    smoothing: see `cross_entropy`.

  Returns:
    (float32 [...], bool [...]): the losses, and whether the label has the highest logit.
  """
  losses, exists, of_label = _losses(logits, labels, smoothing)
  return losses, exists & (of_label == 0)


def _losses(logits, labels, smoothing):
  """Returns (losses, whether the label exists, its logit less the highest one), all [...]."""
  # In this form the gradient is one pass over the logits. The gradient of a gather is a scatter into zeros, and argmax
  # is a slow loop on CPUs. A label out of range makes the loss NaN.
  classes = logits.shape[-1]
  is_label = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]
  top = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
  shifted = logits - top[..., None]
  log_total = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))
  of_label = jnp.sum(jnp.where(is_label, shifted, 0), axis=-1)
  exists = (labels >= 0) & (labels < classes)
  losses = jnp.where(exists, log_total - of_label, jnp.nan)
  if smoothing:
    losses = (1 - smoothing) * losses + smoothing * (log_total - jnp.mean(shifted, axis=-1))
  return losses, exists, of_label


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def chunked_cross_entropy(
  x_BPD: jax.Array, kernel_DC: jax.Array, bias_C: jax.Array, labels_BP: jax.Array, weights_BP: jax.Array, chunk: int
) -> tuple[jax.Array, jax.Array]:
  """Returns the weighted loss of a dense layer with many classes, without keeping all logits in memory.

  Logits are made for about `chunk` positions at a time. For a gradient they are made once, too: a chunk's part of the
  gradient is computed with its loss.

  Args:
    x_BPD: the layer's input, in the dtype of the product.
    kernel_DC, bias_C: the layer.
    labels_BP: int. weights_BP: float32.
    chunk: positions of all rows at a time, about.

  Returns:
    (float32 sum of weights * losses, is_hit [B, P] bool).
  """
  total, is_hit, _ = _in_chunks(x_BPD, kernel_DC, bias_C, labels_BP, weights_BP, chunk, False)
  return total, is_hit


def _in_chunks(x_BPD, kernel_DC, bias_C, labels_BP, weights_BP, chunk, with_gradient):
  B, P, _ = x_BPD.shape
  size = max(n for n in range(1, P + 1) if P % n == 0 and n <= max(1, chunk // B))
  kernel = kernel_DC.astype(x_BPD.dtype)

  def cut(values):  # [B, P, ...] -> [P / size, B, size, ...]; rows stay on their devices
    return values.reshape(B, P // size, size, *values.shape[2:]).swapaxes(0, 1)

  def of_chunk(part):  # ((loss, gradients of the kernel and the bias or None), (hits, gradient of x or None))
    x, labels, weights = part
    logits = jnp.einsum("bpd,dc->bpc", x, kernel, preferred_element_type=jnp.float32) + bias_C[None, None, :]
    exists = (labels >= 0) & (labels < logits.shape[-1])
    top = jnp.max(logits, axis=-1, keepdims=True)
    exps = jnp.exp(logits - top)
    sums = jnp.sum(exps, axis=-1)
    of_label = jnp.take_along_axis(logits - top, jnp.where(exists, labels, 0)[..., None], axis=-1)[..., 0]
    total = jnp.sum(weights * jnp.where(exists, jnp.log(sums) - of_label, jnp.nan))
    is_hit = exists & (of_label == 0)
    if not with_gradient:
      return (total, None, None), (is_hit, None)
    is_label = jax.lax.broadcasted_iota(labels.dtype, logits.shape, 2) == labels[..., None]
    d_logits = exps * (weights / sums)[..., None] - jnp.where(is_label, weights[..., None], 0)
    # With the barrier, XLA's CPU compiler makes d_logits once, not for each of its uses. There, a sum over the first
    # axes would take as long as a product with the kernel; the product with ones takes an eighteenth of the sum.
    d_logits = jax.lax.optimization_barrier(d_logits)
    d_bias = jnp.einsum("bp,bpc->c", jnp.ones_like(weights), d_logits, precision="highest")
    d_logits = d_logits.astype(x.dtype)
    d_x = jnp.einsum("bpc,dc->bpd", d_logits, kernel)
    d_kernel = jnp.einsum("bpd,bpc->dc", x, d_logits, preferred_element_type=jnp.float32)
    return (total, d_kernel, d_bias), (is_hit, d_x)

  def add_chunk(so_far, part):
    sums, of_positions = of_chunk(part)
    return jax.tree.map(jnp.add, so_far, sums), of_positions

  parts = cut(x_BPD), cut(labels_BP), cut(weights_BP)
  first, rest = (jax.tree.map(lambda x, at=at: x[at], parts) for at in (0, slice(1, None)))
  # Sums begin with the first chunk: to add it to zeros would take another pass over arrays as large as the kernel.
  sums, of_first = of_chunk(first)
  of_positions = jax.tree.map(lambda x: x[None], of_first)
  if size < P:
    sums, of_rest = jax.lax.scan(add_chunk, sums, rest)
    of_positions = jax.tree.map(lambda *x: jnp.concatenate(x), of_positions, of_rest)
  is_hit, d_x = (x if x is None else x.swapaxes(0, 1).reshape(B, P, *x.shape[3:]) for x in of_positions)
  total, d_kernel, d_bias = sums
  return total, is_hit, (d_x, d_kernel, d_bias) if with_gradient else None


def _chunked_forward(x_BPD, kernel_DC, bias_C, labels_BP, weights_BP, chunk):
  total, is_hit, gradient = _in_chunks(x_BPD, kernel_DC, bias_C, labels_BP, weights_BP, chunk, True)
  return (total, is_hit), gradient


def _chunked_backward(chunk, gradient, cotangents):
  scale = cotangents[0]
  d_x, d_kernel, d_bias = gradient
  return d_x * scale.astype(d_x.dtype), d_kernel * scale, d_bias * scale, None, None


chunked_cross_entropy.defvjp(_chunked_forward, _chunked_backward)


def mean_loss(batch: Batch) -> dict[str, jax.Array]:
  """Implements `Task.terms` for a loss that is the mean over the rows that count."""
  return {"loss": 1 / jnp.maximum(jnp.sum(batch["weight"]), 1)}


def mean_label_loss(batch: Batch) -> dict[str, jax.Array]:
  """Implements `Task.terms` for a loss that is the mean over the labelled positions of the whole batch."""
  return {"loss": 1 / jnp.maximum(jnp.sum(label_weights(batch)), 1)}


def label_weights(batch: Batch) -> jax.Array:
  """Returns float32 [B, L]: 1 where a row that counts has a label, which is not -1."""
  return (batch["labels"] >= 0) * batch["weight"][:, None]


def batch_limits() -> dict[str, Any]:
  """Returns `tokens`, `filled` and `lengths` of batching.serving_batches for this machine."""
  cpu = jax.default_backend() == "cpu"
  cores = os.cpu_count() or 1
  return {
    "tokens": min(TOKENS, TOKENS_A_CORE * cores) if cpu else TOKENS,
    "filled": 0.75 if cpu else 0.5,  # On a CPU, a row of padding takes as long as any other row.
    "lengths": batching.FINE_LENGTHS if cpu else batching.LENGTHS,
  }


def by_row(
  function: Callable, params: Any, rows: batching.Rows, longest: int, batch_size: int = BATCH
) -> dict[str, list]:
  """Runs a compiled function on rows, shortest first, in batches of a few shapes.

  Args:
    function: (params, batch) -> {name: [B, ...]}.
    params: its first argument; or an onnx_runtime.OnnxModel to call instead of the function.
    rows: the encoded inputs.
    longest: the positions of the model.
    batch_size: the most rows in a batch.

  Returns:
    {name: list of one numpy array a row}. Arrays over positions are as long as their batch's longest row.
  """
  run = functools.partial(params, function) if callable(params) else functools.partial(function, params)
  batches = batching.serving_batches(rows, most=batch_size, longest=longest, **batch_limits())
  results: dict[str, list] = {}
  pending = None
  for batch in itertools.chain(batches, (None,)):
    # The next batch is dispatched before the answers of the last one are waited for.
    dispatched = None if batch is None else (batch["row"], run(batch))
    if pending is not None:
      for name, values in jax.device_get(pending[1]).items():
        by_number = results.setdefault(name, [None] * len(rows))
        for row, value in zip(pending[0], values, strict=True):
          if row >= 0:
            by_number[row] = value
    pending = dispatched
  return results
