"""Attention as matrix products that XLA schedules, and as one fused kernel: Pallas on TPUs, cuDNN on NVIDIA GPUs.

`auto` selects a fused kernel only after checking it, forward and backward, against the plain form on this machine.

All three read and write [B, L, D] arrays, the layout of the products before and after them. The kernels never write
scores of size L x L to memory. Against XLA's form in float32 they agree to 1e-6, in bfloat16 to its
rounding; the Pallas kernel was compiled for TPUs but has run in Pallas' interpreter only.
"""

import concurrent.futures
import dataclasses
import functools
import logging
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P

from albert_jax import nvidia
from albert_jax.errors import UserError
from albert_jax.model.config import AlbertConfig
from albert_jax.model.layers import dropout
from albert_jax.types import Batch

logger = logging.getLogger(__name__)

LOWEST = float(jnp.finfo(jnp.float32).min)
# Limits of the Pallas kernel: TPU registers are 128 wide, and all scores of a head must fit into on-chip memory.
LANES, WIDEST, LONGEST = 128, 256, 512
# From this length on, copying scores is faster than a product in their order (docs/performance.md).
LONG_ON_CPU = 256
# Limits of cuDNN's kernel: the oldest compute capability, and the largest head size that all of them support.
AMPERE, LARGEST_HEAD = 8.0, 128


def make(cfg: AlbertConfig, batch: Batch, drops: bool, window: int | None = None) -> tuple[Callable, jax.Array | None]:
  """Chooses the attention function of all layers for a batch.

  Args:
    cfg: the model; cfg.attention names the kernel.
    batch: as `apply` checked it.
    drops: whether there is dropout of attention weights, which only the XLA form supports.
    window: how many positions to each side a position attends to; None: all.
  Returns:
    (attend, order): attend is (q_BLD, k_BLD, v_BLD, keys_B) -> context_BLD; order is int [B, L], the order in which
    the layers must see the positions, or None for the order they have.
  Raises:
    UserError: cfg.attention names a kernel that this machine or this batch cannot use.
  """
  name = BEST.get(nvidia.target().platform, "xla") if cfg.attention == "auto" else cfg.attention
  calls = max(cfg.groups, cfg.inner_group_num, layers_a_turn(cfg, batch, drops))
  if why := _why_not(name, cfg, batch, drops, calls):
    if cfg.attention != "auto":
      raise UserError(f"attention={name} {why}; use --config.model.attention=auto")
    name = "xla"
  return _form(name, cfg, batch, drops, window)


def _form(name, cfg, batch, drops, window):
  return ATTENTION[name](cfg, batch) if window is None else (LOCAL[name](cfg, batch, drops, window), None)


def layers_a_turn(cfg: AlbertConfig, batch: Batch, drops: bool) -> int:
  """Returns the layers that a turn of the loop over layers computes; the arguments are those of `make`.

  On NVIDIA GPUs all layers, without a loop, are a sixth faster (docs/benchmarks/accelerator.md), unless the fused
  kernel works only where a program calls it once.
  """
  if cfg.scan_unroll or not nvidia.is_target():
    return cfg.scan_unroll or 1
  auto = dataclasses.replace(cfg, attention="auto")
  fails_repeated = cfg.attention != "xla" and _why_not("cudnn", auto, batch, drops, 2)
  return 1 if fails_repeated and not _why_not("cudnn", auto, batch, drops, 1) else cfg.num_hidden_layers


def _why_not(name, cfg, batch, drops, calls):
  """Returns why a kernel cannot be used, '' if it can; `auto` also tries it on this machine.

  Args:
    name: the kernel.
    cfg: as of `make`.
    batch: as of `make`.
    drops: as of `make`.
    calls: how often the program calls it; more than one are alike.
  """
  refuses = REFUSALS.get(name)
  if refuses is None:
    return ""
  if why := refuses(cfg, batch, drops):
    return why
  if cfg.attention != "auto" or nvidia.target().platform != jax.devices()[0].platform:
    return ""
  return _disagrees(name, cfg, "segment_ids" in batch, min(calls, 2))


def xla(cfg: AlbertConfig, batch: Batch) -> tuple[Callable, jax.Array | None]:
  return functools.partial(_xla, cfg, mask(batch)), None


def _xla_local(cfg, batch, drops, window):
  length = batch["input_ids"].shape[1]
  # Dropout has a key for each row, and blocks are not rows. In an export for any length the length is no number.
  if drops or not isinstance(length, int) or length <= 4 * window:
    return functools.partial(_xla, cfg, mask(batch, window))
  return functools.partial(_blocked, cfg, *_ids(batch), window)


def _blocked(cfg, q_ids_BL, k_ids_BL, window, q_BLD, k_BLD, v_BLD, keys_B):
  """Attends within a window, by blocks of 2 windows of queries and the 4 windows of keys that they reach, as rows."""
  B, L, D = q_BLD.shape
  size = 2 * window
  blocks = -(-L // size)

  def padded(x, before, after):
    return jnp.pad(x, ((0, 0), (before, blocks * size - L + after)) + ((0, 0),) * (x.ndim - 2))

  def queries(x):
    return padded(x, 0, 0).reshape(B * blocks, size, *x.shape[2:])

  def keys(x):
    halves = padded(x, window, window).reshape(B, blocks + 1, size, *x.shape[2:])
    return jnp.concatenate([halves[:, :-1], halves[:, 1:]], axis=2).reshape(B * blocks, 2 * size, *x.shape[2:])

  q_ids, k_ids = queries(q_ids_BL)[:, :, None], keys(k_ids_BL)[:, None, :]
  distance = jnp.arange(2 * size)[None, :] - window - jnp.arange(size)[:, None]
  is_seen = (q_ids == k_ids) & (k_ids > 0) & (jnp.abs(distance) <= window)[None]
  context = _xla(cfg, is_seen[:, None], queries(q_BLD), keys(k_BLD), keys(v_BLD), keys_B)
  return context.reshape(B, blocks * size, D)[:, :L]


def _xla(cfg, mask_B1Ll, q_BLD, k_BLD, v_BLD, keys_B):
  q_BLHK, k_BLHK, v_BLHK = (x.reshape(*x.shape[:2], -1, cfg.head_size) for x in (q_BLD, k_BLD, v_BLD))
  drops = keys_B is not None and cfg.attention_probs_dropout_prob > 0
  if nvidia.target().platform == "cpu" and not drops:
    context_BLD = _on_cpu(*(x.swapaxes(1, 2) for x in (q_BLHK, k_BLHK, v_BLHK)), mask_B1Ll)
    return checkpoint_name(context_BLD, "context")
  scores_BHLl = jnp.einsum("BLHK,BlHK->BHLl", q_BLHK, k_BLHK, preferred_element_type=jnp.float32)
  scores_BHLl = scores_BHLl * cfg.head_size**-0.5
  # The lowest float, not the original's -10000: the results at tokens are the same, and a row without tokens does not
  # become NaN.
  probs_BHLl = jax.nn.softmax(jnp.where(mask_B1Ll, scores_BHLl, LOWEST), axis=-1)
  probs_BHLl = dropout(probs_BHLl.astype(v_BLHK.dtype), cfg.attention_probs_dropout_prob, keys_B)
  return checkpoint_name(jnp.einsum("BHLl,BlHK->BLHK", probs_BHLl, v_BLHK).reshape(q_BLD.shape), "context")


@jax.custom_vjp
def _on_cpu(q_BHLK, k_BHlK, v_BHlK, mask_B1Ll):
  """Computes softmax(q k' / sqrt(K)) v as [B, L, D], without dropout, in the form that is fastest on a CPU.

  The head axis precedes the positions, and the gradient is explicit: L x L arrays are recomputed, not saved, and never
  divided by the sums of the softmax. On a TPU this form is slower and needs more memory (docs/performance.md).
  """
  weights_BHLl, sums_BHL1 = _weights(q_BHLK, k_BHlK, mask_B1Ll)
  context_BHLK = jnp.einsum(
    "BHLl,BHlK->BHLK", weights_BHLl.astype(v_BHlK.dtype), v_BHlK, preferred_element_type=jnp.float32
  )
  return _columns((context_BHLK / sums_BHL1).astype(v_BHlK.dtype))


def _on_cpu_forward(*arguments):
  return _on_cpu(*arguments), arguments


def _on_cpu_backward(arguments, d_context_BLD):
  q_BHLK, k_BHlK, v_BHlK, mask_B1Ll = arguments
  scale, dtype = q_BHLK.shape[-1] ** -0.5, q_BHLK.dtype
  weights_BHLl, sums_BHL1 = _weights(q_BHLK, k_BHlK, mask_B1Ll)
  d_BHLK = d_context_BLD.reshape(*d_context_BLD.shape[:2], -1, q_BHLK.shape[-1]).swapaxes(1, 2)
  d_BHLK = (d_BHLK / sums_BHL1).astype(dtype)
  dv_BHlK = _summed_over_queries(weights_BHLl.astype(dtype), d_BHLK)
  d_weights_BHLl = jnp.einsum("BHLK,BHlK->BHLl", d_BHLK, v_BHlK, preferred_element_type=jnp.float32)
  mean_BHL1 = jnp.sum(weights_BHLl * d_weights_BHLl, axis=-1, keepdims=True) / sums_BHL1
  d_scores_BHLl = (weights_BHLl * (d_weights_BHLl - mean_BHL1) * scale).astype(dtype)
  dq_BHLK = jnp.einsum("BHLl,BHlK->BHLK", d_scores_BHLl, k_BHlK)
  dk_BHlK = _summed_over_queries(d_scores_BHLl, q_BHLK)
  return dq_BHLK, dk_BHlK, dv_BHlK, None


_on_cpu.defvjp(_on_cpu_forward, _on_cpu_backward)


def _summed_over_queries(x_BHLl, y_BHLK):
  if x_BHLl.shape[2] < LONG_ON_CPU or x_BHLl.dtype != jnp.float32:
    return jnp.einsum("BHLl,BHLK->BHlK", x_BHLl, y_BHLK)
  # As in layers._product_on_cpu: the product of a transposed copy is in another, faster library.
  return jnp.einsum("BHlL,BHLK->BHlK", jax.lax.optimization_barrier(x_BHLl.swapaxes(2, 3)), y_BHLK)


def _weights(q_BHLK, k_BHlK, mask_B1Ll):
  """Returns the softmax's numerators, float32 [B, H, L, l], and their sums [B, H, L, 1]."""
  scores_BHLl = jnp.einsum("BHLK,BHlK->BHLl", q_BHLK, k_BHlK, preferred_element_type=jnp.float32)
  scores_BHLl = scores_BHLl * q_BHLK.shape[-1] ** -0.5 + jnp.where(mask_B1Ll, 0.0, LOWEST)
  weights_BHLl = jnp.exp(scores_BHLl - jnp.max(scores_BHLl, axis=-1, keepdims=True))
  return weights_BHLl, jnp.sum(weights_BHLl, axis=-1, keepdims=True)


def _columns(x_BHLK):
  """Returns all heads side by side: [B, L, D]."""
  return x_BHLK.swapaxes(1, 2).reshape(x_BHLK.shape[0], x_BHLK.shape[2], -1)


def mask(batch: Batch, window: int | None = None) -> jax.Array:
  """Returns bool [B, 1, 1 or L, l]: the positions l to attend to; in packed rows only those of the same segment.

  Args:
    batch: as `apply` checked it.
    window: how many positions to each side, None for all.
  """
  if window is not None:
    position_L = jnp.arange(batch["input_ids"].shape[1])
    is_near_Ll = jnp.abs(position_L[:, None] - position_L[None, :]) <= window
    return mask(batch) & is_near_Ll[None, None]
  if "segment_ids" in batch:
    segments_BL = batch["segment_ids"]
    same_BLl = segments_BL[:, :, None] == segments_BL[:, None, :]
    return (same_BLl & (segments_BL > 0)[:, None, :])[:, None]
  return batch["attention_mask"][:, None, None, :] > 0


def _ids(batch):
  """Returns ([B, L], [B, L]), of queries and keys: a query attends to the keys with its id; 0 is padding."""
  if "segment_ids" in batch:
    return batch["segment_ids"], batch["segment_ids"]
  k_ids_BL = (batch["attention_mask"] > 0).astype(jnp.int32)
  return jnp.ones_like(k_ids_BL), k_ids_BL


def pallas(cfg: AlbertConfig, batch: Batch) -> tuple[Callable, jax.Array | None]:
  return functools.partial(_pallas, cfg, *_ids(batch)), None


def _pallas(cfg, q_ids_BL, k_ids_BL, q_BLD, k_BLD, v_BLD, keys_B):
  del keys_B
  kernel = functools.partial(_fused, cfg.head_size, nvidia.target().platform == "cpu")
  # The compiler cannot partition a kernel, so all automatic axes of the mesh become manual here.
  if axes := jax.sharding.get_abstract_mesh().auto_axes:
    x = P(tuple(axis for axis in axes if axis != "tensor"), None, "tensor" if "tensor" in axes else None)
    ids = P(x[0])
    kernel = jax.shard_map(kernel, in_specs=(x, x, x, ids, ids), out_specs=x, axis_names=set(axes))
  return checkpoint_name(kernel(q_BLD, k_BLD, v_BLD, q_ids_BL, k_ids_BL), "context")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fused(head_size, interpret, q_BLD, k_BLD, v_BLD, q_ids_BL, k_ids_BL):
  return _call(_forward_kernel, head_size, interpret, 1, q_ids_BL, k_ids_BL, q_BLD, k_BLD, v_BLD)[0]


def _fused_forward(head_size, interpret, *arguments):
  return _fused(head_size, interpret, *arguments), arguments


def _fused_backward(head_size, interpret, arguments, d_context_BLD):
  q_BLD, k_BLD, v_BLD, q_ids_BL, k_ids_BL = arguments
  inputs = (q_BLD, k_BLD, v_BLD, d_context_BLD)
  return *_call(_backward_kernel, head_size, interpret, 3, q_ids_BL, k_ids_BL, *inputs), None, None


_fused.defvjp(_fused_forward, _fused_backward)


def _call(kernel, head_size, interpret, outputs, q_ids_BL, k_ids_BL, *inputs):
  """Runs a kernel on each row and each block of 128 columns of [B, L, D], which has one or more heads."""
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import tpu as pltpu

  B, L, D = inputs[0].shape
  width = math.lcm(LANES, head_size)
  columns = pl.BlockSpec((1, L, width), lambda row, heads: (row, 0, heads))
  ids = [
    pl.BlockSpec((1, L, 1), lambda row, heads: (row, 0, 0)),
    pl.BlockSpec((1, 1, L), lambda row, heads: (row, 0, 0)),
  ]
  out = jax.ShapeDtypeStruct((B, L, D), inputs[0].dtype, manual_axis_type=jax.typeof(inputs[0]).manual_axis_type)
  return pl.pallas_call(
    functools.partial(kernel, head_size),
    grid=(B, D // width),
    in_specs=[*ids, *[columns] * len(inputs)],
    out_specs=[columns] * outputs,
    out_shape=[out] * outputs,
    interpret=interpret,
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
    name=f"attention{kernel.__name__}",
  )(q_ids_BL[:, :, None], k_ids_BL[:, None, :], *inputs)


def _dot(a, b, contract):
  return jax.lax.dot_general(a, b, (contract, ((), ())), preferred_element_type=jnp.float32)


def _heads(head_size, width):
  """Returns the mask [1, width] of the columns of each head in a block.

  The other columns are zeroed, not cut off: a product is 128 wide whether its columns are used or not.
  """
  column = jax.lax.broadcasted_iota(jnp.int32, (1, width), 1)
  return [(column >= start) & (column < start + head_size) for start in range(0, width, head_size)]


def _probs(q_LW, k_LW, is_head, mask_Ll, head_size):
  q_LW = jnp.where(is_head, q_LW, jnp.zeros_like(q_LW))
  scores_Ll = jnp.where(mask_Ll, _dot(q_LW, k_LW, ((1,), (1,))) * head_size**-0.5, LOWEST)
  weights_Ll = jnp.exp(scores_Ll - jnp.max(scores_Ll, axis=1, keepdims=True))
  return weights_Ll / jnp.sum(weights_Ll, axis=1, keepdims=True)


def _forward_kernel(head_size, q_ids, k_ids, q, k, v, context):
  mask_Ll = q_ids[0] == k_ids[0]
  q_LW, k_LW, v_LW = q[0], k[0], v[0]
  out_LW = jnp.zeros(v_LW.shape, jnp.float32)
  for is_head in _heads(head_size, v_LW.shape[1]):
    probs_Ll = _probs(q_LW, k_LW, is_head, mask_Ll, head_size).astype(v_LW.dtype)
    out_LW = jnp.where(is_head, _dot(probs_Ll, v_LW, ((1,), (0,))), out_LW)
  context[0] = out_LW.astype(context.dtype)


def _backward_kernel(head_size, q_ids, k_ids, q, k, v, d_context, dq, dk, dv):
  mask_Ll = q_ids[0] == k_ids[0]
  q_LW, k_LW, v_LW, d_LW = q[0], k[0], v[0], d_context[0]
  dq_LW, dk_LW, dv_LW = (jnp.zeros(q_LW.shape, jnp.float32) for _ in range(3))
  for is_head in _heads(head_size, q_LW.shape[1]):
    probs_Ll = _probs(q_LW, k_LW, is_head, mask_Ll, head_size)
    d_probs_Ll = _dot(jnp.where(is_head, d_LW, jnp.zeros_like(d_LW)), v_LW, ((1,), (1,)))
    mean_L1 = jnp.sum(probs_Ll * d_probs_Ll, axis=1, keepdims=True)
    d_scores_Ll = jnp.where(mask_Ll, probs_Ll * (d_probs_Ll - mean_L1) * head_size**-0.5, 0.0).astype(q_LW.dtype)
    dq_LW = jnp.where(is_head, _dot(d_scores_Ll, k_LW, ((1,), (0,))), dq_LW)
    dk_LW = jnp.where(is_head, _dot(d_scores_Ll, q_LW, ((0,), (0,))), dk_LW)
    dv_LW = jnp.where(is_head, _dot(probs_Ll.astype(d_LW.dtype), d_LW, ((0,), (0,))), dv_LW)
  for ref, value in ((dq, dq_LW), (dk, dk_LW), (dv, dv_LW)):
    ref[0] = value.astype(ref.dtype)


def cudnn(cfg: AlbertConfig, batch: Batch) -> tuple[Callable, jax.Array | None]:
  if "segment_ids" in batch:
    return functools.partial(_cudnn, cfg, {"mask": mask(batch)}), None
  if cfg.arch == "modern":  # Its positions must stay where they are: local layers count them.
    length = batch["input_ids"].shape[1]
    return _cudnn_local(cfg, batch, False, length), None
  # The kernel takes lengths; a mask would become a bias of size L x L. Padding is moved to the end, so that any mask is
  # a length; attention does not depend on the order. In our data, padding is at the end already.
  mask_BL = batch["attention_mask"] > 0
  order_BL = jnp.argsort(~mask_BL, axis=1, stable=True)
  lengths_B = jnp.sum(mask_BL, axis=1, dtype=jnp.int32)
  return functools.partial(_cudnn, cfg, {"key_value_seq_lengths": lengths_B}), order_BL


def _cudnn_local(cfg, batch, drops, window):
  del drops
  return functools.partial(_cudnn, cfg, {"mask": mask(batch, window)})


def _cudnn(cfg, which, q_BLD, k_BLD, v_BLD, keys_B):
  del keys_B
  nvidia.mark_attention_deterministic()
  q_BLHK, k_BLHK, v_BLHK = (x.reshape(*x.shape[:2], -1, cfg.head_size) for x in (q_BLD, k_BLD, v_BLD))
  return jax.nn.dot_product_attention(q_BLHK, k_BLHK, v_BLHK, **which, implementation="cudnn").reshape(q_BLD.shape)


def _no_pallas(cfg, batch, drops):
  B, L = batch["input_ids"].shape
  platform = nvidia.target().platform
  if platform not in ("tpu", "cpu"):  # On a CPU it is interpreted, slowly: for tests.
    return f"is for TPUs; this is {platform}"
  if cfg.arch == "modern":
    return "has no local attention, which arch=modern needs"
  if drops:
    return "does not drop out attention weights: set attention_probs_dropout_prob=0"
  if L % LANES or L > LONGEST:
    return f"needs rows of 128, 256, 384 or {LONGEST} tokens, not {L}"
  mesh = jax.sharding.get_abstract_mesh()
  sizes = {axis: mesh.shape[axis] for axis in mesh.auto_axes}
  heads = sizes.pop("tensor", 1)
  width = math.lcm(LANES, cfg.head_size)
  if width > WIDEST or cfg.hidden_size % (width * heads):
    return f"needs {width} to divide the {cfg.hidden_size // heads} columns a device has, and heads of up to {WIDEST}"
  rows = math.prod(sizes.values())
  return "" if B % rows == 0 else f"cannot split {B} rows over {rows} devices"


def _no_cudnn(cfg, batch, drops):
  device = nvidia.target()
  if device.platform not in nvidia.PLATFORMS:
    return f"is for NVIDIA GPUs; this is {device.platform}"
  if drops:
    return "does not drop out attention weights: set attention_probs_dropout_prob=0"
  if cfg.dtype != "bfloat16":
    return "needs dtype=bfloat16"
  if cfg.head_size % 8 or cfg.head_size > LARGEST_HEAD:
    return f"needs a head_size that 8 divides, up to {LARGEST_HEAD}, not {cfg.head_size}"
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.manual_axes and mesh.auto_axes:  # jax 0.10.2 assembles the residuals of the backward pass incorrectly.
    return "cannot be used with mesh.tensor over 1"
  # The compute capability is unknown when compiling for another machine.
  old = float(getattr(device, "compute_capability", AMPERE)) < AMPERE
  return f"needs an NVIDIA GPU from Ampere on; this is a {device.device_kind}" if old else ""


@functools.lru_cache(maxsize=32)
def _disagrees(name, cfg, is_packed, calls) -> str:
  """Checks a kernel against the plain form on a small example on this device.

  Args:
    name: the kernel.
    cfg: the model.
    is_packed: whether the example's rows are packed.
    calls: how often the example calls it.

  The model is being traced at this time, so the example runs in a separate thread, without a trace.

  Returns:
    The reason why the kernel cannot be used, or '' if it agrees.
  """
  trial = concurrent.futures.ThreadPoolExecutor(1)
  try:
    kernel, plain = (trial.submit(_example, form, cfg, is_packed, calls).result() for form in (name, "xla"))
    worst = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(kernel, plain, strict=True))
    why = (
      "" if worst < 0.03 else f"differs from the plain formula by {worst:.0%}"
    )  # 3 % is far above bfloat16's rounding.
  except Exception as error:  # Compilers and drivers raise many kinds of errors.
    why = f"fails: {next(iter(str(error).splitlines()), type(error).__name__)[:200]}"
  finally:
    trial.shutdown()
  if why:
    often = "" if calls == 1 else " more than once in a program"
    logger.warning("attention=%s is not used%s, as here it %s.", name, often, why)
  return why


def _example(form, cfg, is_packed, calls):
  """Returns context and gradients (float32 numpy) of two rows of 128 tokens, which end in padding and may be packed."""
  shape = (2, LANES, cfg.hidden_size)
  batch = {
    "input_ids": jnp.ones(shape[:2], jnp.int32),
    "attention_mask": jnp.stack([jnp.ones(LANES, jnp.int32), (jnp.arange(LANES) < 90).astype(jnp.int32)]),
  }
  if is_packed:
    batch["segment_ids"] = batch["attention_mask"] * (1 + (jnp.arange(LANES) >= 50).astype(jnp.int32))[None]
  q, k, v, weight = (x.astype(cfg.dtype) for x in jax.random.normal(jax.random.key(0), (4, *shape)))
  weight = weight * batch["attention_mask"][:, :, None].astype(cfg.dtype)  # Results at padding mean nothing.

  @functools.partial(jax.jit, compiler_options=nvidia.COMPILER_OPTIONS if nvidia.is_target() else None)
  def run(q, k, v):
    plain = dataclasses.replace(cfg, attention_probs_dropout_prob=0.0)
    attend, _ = _form(form, plain, batch, False, cfg.window_of(1))

    def attended(q, k, v):
      for _ in range(calls):
        q = attend(q, k, v, None)
      return q

    context, back = jax.vjp(attended, q, k, v)
    return [x.astype(jnp.float32) for x in (context * (weight != 0), *back(weight))]

  return jax.device_get(run(q, k, v))


ATTENTION = {"xla": xla, "pallas": pallas, "cudnn": cudnn}
# Those that can attend within a window: (cfg, batch, drops, window) -> attend.
LOCAL: dict[str, Callable] = {"xla": _xla_local, "cudnn": _cudnn_local}
REFUSALS = {"pallas": _no_pallas, "cudnn": _no_cudnn}
# The kernels that `auto` tries first, see docs/performance.md.
BEST = {"tpu": "pallas"} | dict.fromkeys(nvidia.PLATFORMS, "cudnn")
