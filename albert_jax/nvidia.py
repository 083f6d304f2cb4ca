"""Functions of the model in the form that is fast and deterministic on NVIDIA GPUs, and options for their compiler.

XLA for GPUs adds up the gradient of a table's rows by atomic additions, in an order that differs between runs, computes
bfloat16 step by step with a rounding after each, and merges backward passes with sums over tokens into slow kernels.
Each function here computes in float32 and has its gradient written out; docs/performance.md has the measurements.
model/layers.py and model/heads.py choose them where `is_target()`.
"""

import functools
import json
from collections.abc import Callable

import jax
import jax.numpy as jnp

PLATFORMS = ("gpu", "cuda")
# For the train step. Two runs of the same program on the same GPU give the same bits. Products that read the same
# activations are not merged into one: that would copy their results and add their biases in kernels of their own.
# cuBLAS computes all products: with Triton's kernels among the candidates, a step of base took 4 % longer on an H200.
COMPILER_OPTIONS = {
  "xla_gpu_exclude_nondeterministic_ops": True,
  "xla_gpu_dot_merger_threshold_mb": 0,
  "xla_gpu_enable_triton_gemm": False,
}
SMALL_TABLE = 1024  # rows up to which a gradient is a matrix product with one-hot rows


def target() -> jax.Device:
  """Returns a device of the target: of the mesh if one is set (it may be another machine), else JAX's default one."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  device = device or jax.config.jax_default_device  # type: ignore[attr-defined]  # JAX adds it while it runs.
  return device if device and not isinstance(device, str) else jax.devices(device)[0]


def is_target() -> bool:
  """Returns whether the program that is traced is for NVIDIA GPUs."""
  return target().platform in PLATFORMS


@functools.cache
def mark_attention_deterministic() -> None:
  """Makes JAX say in each call of cuDNN's backward pass that its algorithm must be deterministic.

  COMPILER_OPTIONS make XLA choose that algorithm. XLA then writes so into the first of several equal calls only, takes
  the others for different ones, and fails with "raw_hash_map<>::at" (seen with jaxlib 0.11.2).
  """
  from jax._src.cudnn import fused_attention_stablehlo as fused

  name = "create_dot_product_attention_backend_config"
  original = getattr(fused, name, None)
  if original is None:
    return  # Attention is checked with several calls before it is used so.

  @functools.wraps(original)
  def create(*args, **kwargs):
    config = json.loads(original(*args, **kwargs))
    attention = config["cudnn_fmha_backend_config"]
    if any("_grad_" in field for field in attention):
      attention["force_deterministic"] = True
    return json.dumps(config)

  setattr(fused, name, create)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def in_float32(function: Callable, x: jax.Array) -> jax.Array:
  """Returns `function` of each value, computed in float32 forward and backward, in the type of `x`."""
  return function(x.astype(jnp.float32)).astype(x.dtype)


def _in_float32_forward(function, x):
  return in_float32(function, x), x


def _in_float32_backward(function, x, d_y):
  x = jax.lax.optimization_barrier(x)  # Otherwise the forward pass writes what both have in common, in float32.
  _, back = jax.vjp(function, x.astype(jnp.float32))
  (d_x,) = back(d_y.astype(jnp.float32))
  return (jax.lax.optimization_barrier(d_x.astype(x.dtype)),)


in_float32.defvjp(_in_float32_forward, _in_float32_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def layer_norm(epsilon: float, dtype: str, x_TD: jax.Array, scale_D: jax.Array, bias_D: jax.Array) -> jax.Array:
  """Returns the layer norm of T tokens, computed in float32, in `dtype`."""
  return _layer_norm_forward(epsilon, dtype, x_TD, scale_D, bias_D)[0]


def _layer_norm_forward(epsilon, dtype, x_TD, scale_D, bias_D):
  x32_TD = x_TD.astype(jnp.float32)
  mean_T1 = jnp.mean(x32_TD, axis=-1, keepdims=True)
  rstd_T1 = jax.lax.rsqrt(jnp.mean(jnp.square(x32_TD - mean_T1), axis=-1, keepdims=True) + epsilon)
  y_TD = (x32_TD - mean_T1) * (rstd_T1 * scale_D[None]) + bias_D[None]
  return y_TD.astype(dtype), (x_TD, scale_D, mean_T1, rstd_T1)


def _layer_norm_backward(epsilon, dtype, residuals, d_y_TD):
  x_TD, scale_D, mean_T1, rstd_T1 = residuals
  # The sums over tokens and those over the last axis read their inputs separately: otherwise XLA writes what they have
  # in common as a float32 array of the size of x.
  d_TD, normal_TD = _normal(x_TD, mean_T1, rstd_T1, d_y_TD)
  d_scale_D, d_bias_D = jnp.sum(d_TD * normal_TD, axis=0), jnp.sum(d_TD, axis=0)
  d_TD, normal_TD = _normal(x_TD, mean_T1, rstd_T1, d_y_TD)
  d_TD = d_TD * scale_D[None]
  d_TD = d_TD - jnp.mean(d_TD, -1, keepdims=True) - normal_TD * jnp.mean(d_TD * normal_TD, -1, keepdims=True)
  return jax.lax.optimization_barrier((rstd_T1 * d_TD).astype(x_TD.dtype)), d_scale_D, d_bias_D


def _normal(x_TD, mean_T1, rstd_T1, d_y_TD):
  """Returns the gradient and the normalised input, in float32."""
  x_TD, mean_T1, rstd_T1, d_y_TD = jax.lax.optimization_barrier((x_TD, mean_T1, rstd_T1, d_y_TD))
  return d_y_TD.astype(jnp.float32), (x_TD.astype(jnp.float32) - mean_T1) * rstd_T1


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@jax.custom_vjp
def lookup(table_VE: jax.Array, ids_BL: jax.Array) -> jax.Array:
  """Returns the table's rows at `ids_BL`: [B, L, E]."""
  return table_VE.at[ids_BL].get(mode="clip")


def _lookup_forward(table_VE, ids_BL):
  return lookup(table_VE, ids_BL), (ids_BL, table_VE.shape[0])


def _lookup_backward(residuals, d_BLE):
  ids_BL, V = residuals
  ids_T, d_TE = jnp.clip(ids_BL.reshape(-1), 0, V - 1), d_BLE.reshape(-1, d_BLE.shape[-1])
  if V <= SMALL_TABLE:
    one_hot_TV = jax.nn.one_hot(ids_T, V, dtype=d_TE.dtype)
    return jnp.einsum("TV,TE->VE", one_hot_TV, d_TE, precision="highest"), None
  return _summed_by_id(d_TE, ids_T, V), None


lookup.defvjp(_lookup_forward, _lookup_backward)


def _summed_by_id(values_TE, ids_T, count):
  """Returns [count, E], the sums of the values of each id, in an order that depends on the ids alone."""
  order_T = jnp.argsort(ids_T, stable=True)
  ids_T, sums_TE = ids_T[order_T], values_TE[order_T]
  # Values of one id are neighbours now. After each turn a place holds the sum of twice as many that end there.
  span = 1
  while span < len(ids_T):
    same = (ids_T[span:] == ids_T[:-span])[:, None]
    sums_TE = sums_TE.at[span:].add(jnp.where(same, sums_TE[:-span], 0.0))
    span *= 2
  is_last_T = jnp.append(ids_T[1:] != ids_T[:-1], True)
  # The other places get an id of their own outside the table, so that no two places write to one row.
  rows_T = jnp.where(is_last_T, ids_T, count + jnp.arange(len(ids_T)))
  empty = jnp.zeros((count, values_TE.shape[1]), values_TE.dtype)
  return empty.at[rows_T].set(sums_TE, mode="drop", unique_indices=True)


@jax.custom_vjp
def at_positions(x_BLD: jax.Array, positions_BM: jax.Array) -> jax.Array:
  """Returns the vectors at `positions_BM` (int, [B, M]) of each row: [B, M, D]."""
  return jnp.take_along_axis(x_BLD, positions_BM[:, :, None], axis=1, mode="clip")


def _at_positions_forward(x_BLD, positions_BM):
  return at_positions(x_BLD, positions_BM), (positions_BM, x_BLD.shape[1])


def _at_positions_backward(residuals, d_BMD):
  positions_BM, L = residuals
  one_hot_BML = jax.nn.one_hot(jnp.clip(positions_BM, 0, L - 1), L, dtype=d_BMD.dtype)
  return jnp.einsum("BML,BMD->BLD", one_hot_BML, d_BMD, precision="highest"), None


at_positions.defvjp(_at_positions_forward, _at_positions_backward)


@jax.custom_vjp
def reordered(x_BLD: jax.Array, order_BL: jax.Array, back_BL: jax.Array) -> jax.Array:
  """Returns each row's vectors in another order: [B, L, D].

  Args:
    x_BLD: the vectors.
    order_BL: int, a permutation of a row's positions.
    back_BL: int, the inverse permutation: the order of the gradient, which so needs no sum.
  """
  del back_BL
  B, L, D = x_BLD.shape
  rows_BL = jnp.arange(B)[:, None] * L + order_BL
  return x_BLD.reshape(B * L, D).at[rows_BL.reshape(-1)].get(mode="promise_in_bounds").reshape(B, L, D)


def _reordered_forward(x_BLD, order_BL, back_BL):
  return reordered(x_BLD, order_BL, back_BL), (order_BL, back_BL)


def _reordered_backward(orders, d_BLD):
  order_BL, back_BL = orders
  return reordered(d_BLD, back_BL, order_BL), None, None


reordered.defvjp(_reordered_forward, _reordered_backward)
