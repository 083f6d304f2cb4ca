"""The parts of an ALBERT layer, and how one set of weights becomes many.

Dimension key, used in names throughout: **B** batch, **L** length, **M** masked slots, **E** embedding, **D** hidden,
**H** heads, **K** head size, **F** feed-forward, **V** vocabulary, **N** layers, **P** hosts.
`x_BLD` is an array of that shape; a lower-case l is a second length axis (the keys attended to).

Parameters are float32. Activations and the inputs of matrix products are `cfg.dtype`; layer norms, softmax and
everything after the last matrix product compute in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from albert_jax import nvidia
from albert_jax.model import quantization
from albert_jax.model.config import LOW_RANK, AlbertConfig

Shape = int | tuple[int, ...]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
  "relu": jax.nn.relu,
}


def activation(cfg: AlbertConfig, x: jax.Array) -> jax.Array:
  """Returns the model's activation function of each value."""
  function = ACTIVATIONS[cfg.hidden_act]
  return nvidia.in_float32(function, x) if nvidia.is_target() else function(x)


def dense(
  cfg: AlbertConfig, shape_in: Shape, shape_out: Shape, rngs: Any, dtype: str | None = None, use_bias: bool = True
) -> Any:
  """Returns an affine map of the trailing axes, `shape_in` to `shape_out` (ints or tuples), computed in `dtype`."""
  axis = tuple(range(-len(shape_in), 0)) if isinstance(shape_in, tuple) else -1
  options: dict[str, Any] = {"kernel_init": initializer(cfg), "use_bias": use_bias, "dtype": dtype or cfg.dtype}
  return nnx.LinearGeneral(shape_in, shape_out, axis=axis, **options, rngs=rngs)


def layer_dense(cfg: AlbertConfig, shape_in: Shape, shape_out: Shape, rngs: Any) -> Any:
  """Returns `dense` for a matrix of a layer, with a low-rank difference of each layer if the model has them."""
  module = dense(cfg, shape_in, shape_out, rngs, use_bias=cfg.arch == "albert")
  if cfg.layer_rank:
    module.a = nnx.Param(initializer(cfg)(rngs.params(), (int(np.prod(shape_in)), cfg.layer_rank)))
    module.b = nnx.Param(jnp.zeros((cfg.layer_rank, int(np.prod(shape_out)))))
  return module


class LayerNorm(nnx.LayerNorm):
  """A layer norm over the last axis, computed in float32."""

  def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
    if mask is not None or self.scale is None or not nvidia.is_target():
      return super().__call__(x, mask=mask)
    x_TD, scale_D = x.reshape(-1, x.shape[-1]), self.scale[...]
    bias_D = jnp.zeros_like(scale_D) if self.bias is None else self.bias[...]
    return nvidia.layer_norm(self.epsilon, self.dtype, x_TD, scale_D, bias_D).reshape(x.shape)


def layer_norm(cfg: AlbertConfig, size: int, rngs: Any, use_bias: bool = True) -> LayerNorm:
  """Returns a layer norm over the last axis, computed in float32."""
  # The fast variance E[x²]-E[x]² cancels badly in float32; the original subtracts the mean first.
  options: dict[str, Any] = {"use_fast_variance": False, "use_bias": use_bias, "dtype": cfg.dtype}
  return LayerNorm(size, epsilon=cfg.layer_norm_eps, **options, rngs=rngs)


def lookup(table: nnx.Embed, ids_BL: jax.Array) -> jax.Array:
  """Returns the table's rows at `ids_BL`: [B, L, E]."""
  return nvidia.lookup(table.embedding[...], ids_BL) if nvidia.is_target() else table(ids_BL)


class Keys:
  """The keys for initialisers that nnx.Rngs would return, one after the other.

  nnx.Rngs counts in a variable of the program, which takes longer than building the rest of the model. Without a key
  each is None: where only shapes matter, tracing the draws would dominate.
  """

  def __init__(self, key: jax.Array | None = None):
    self._key, self._count = key, 0

  def params(self) -> jax.Array | None:
    self._count += 1
    return None if self._key is None else jax.random.fold_in(self._key, self._count - 1)


def initializer(cfg: AlbertConfig) -> Callable:
  """Normal, cut at two standard deviations and not rescaled: tf.truncated_normal_initializer of the original."""

  def truncated_normal(key, shape, dtype=jnp.float32, out_sharding=None):
    del out_sharding  # Placement is decided outside, by the sharding rules.
    if key is None:
      return jnp.zeros(shape, dtype)
    return cfg.initializer_range * jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype)

  return truncated_normal


def dropout(x: jax.Array, rate: float, keys_B: Any) -> jax.Array:
  """Zeroes a share `rate` of `x` and scales up the rest. Without keys, or at rate 0, draws nothing.

  Each row has a key of its own, so that what it loses does not depend on which rows share its device.
  """
  if keys_B is None or rate == 0.0:
    return x
  keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys_B)
  return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def split_keys(keys_B: Any, count: int) -> list[Any]:
  """`count` times [B] keys, or `count` times None without keys."""
  return [None] * count if keys_B is None else list(jax.vmap(lambda k: jax.random.split(k, count), out_axes=1)(keys_B))


def affine(cfg: AlbertConfig, module: Any, x: jax.Array, name: str, is_transposed: bool = False) -> jax.Array:
  """`module` on the last axis of `x`, whatever axes its kernel splits it into: [B, L, in] -> [B, L, out].

  `name` is the result's in REMAT, which says what the backward pass keeps. is_transposed: the kernel is [out, in].
  """
  kernel = module.kernel[...].astype(module.dtype)
  bias = None if module.bias is None else module.bias[...].astype(module.dtype)
  # B and L as one axis of tokens: the kernel's gradient is then a sum over one axis. For two, XLA's CPU compiler makes
  # transposed copies and takes a slow product, which made a step up to a sixth longer (docs/performance.md).
  tokens = exact = x.astype(module.dtype).reshape(-1, x.shape[-1])
  kernel = kernel if is_transposed else kernel.reshape(x.shape[-1], -1)
  if cfg.quantization_noise:
    tokens, kernel = quantization.rounded(tokens, kernel.T if is_transposed else kernel, name)
    kernel = kernel.T if is_transposed else kernel
  is_on_cpu = nvidia.target().platform == "cpu" and tokens.dtype == jnp.float32
  y = (_product_on_cpu if is_on_cpu else _product)(tokens, kernel, is_transposed)
  if hasattr(module, "a"):
    y += (exact @ module.a[...].astype(module.dtype)) @ module.b[...].astype(module.dtype)
  y = y.reshape(*x.shape[:-1], -1)
  return checkpoint_name(y if bias is None else y + bias.reshape(1, 1, -1), name)


def _product(tokens, kernel, is_transposed):
  return tokens @ (kernel.T if is_transposed else kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product_on_cpu(tokens, kernel, is_transposed):
  """Is `_product` with the gradient of the kernel as a product of a transposed copy.

  For a sum over the first axes of both factors, XLA's CPU compiler calls another library, which takes 1.5 times as long
  where the result is as wide as the feed-forward part (docs/performance.md).
  """
  return _product(tokens, kernel, is_transposed)


def _product_forward(tokens, kernel, is_transposed):
  return _product(tokens, kernel, is_transposed), (tokens, kernel)


def _product_backward(is_transposed, factors, d_y):
  tokens, kernel = factors
  first, second = (d_y, tokens) if is_transposed else (tokens, d_y)
  # Without the barrier the compiler makes one sum over the first axes of it.
  return _product(d_y, kernel, not is_transposed), jax.lax.optimization_barrier(first.T) @ second


_product_on_cpu.defvjp(_product_forward, _product_backward)


class Attention(nnx.Module):
  """Multi-head self-attention with its residual and layer norm (post-norm, as BERT)."""

  def __init__(self, cfg: AlbertConfig, rngs: Any):
    D, H, K = cfg.hidden_size, cfg.num_attention_heads, cfg.head_size
    self.cfg = cfg
    self.query = layer_dense(cfg, D, (H, K), rngs)
    self.key = layer_dense(cfg, D, (H, K), rngs)
    self.value = layer_dense(cfg, D, (H, K), rngs)
    self.output = layer_dense(cfg, (H, K), D, rngs)
    self.norm = layer_norm(cfg, D, rngs, use_bias=cfg.arch == "albert")

  def __call__(self, x_BLD: jax.Array, attend: Any, keys_B: Any) -> jax.Array:
    """

    Args:
      x_BLD: the layer's input.
      attend: (q_BLD, k_BLD, v_BLD, keys) -> context_BLD, see attention.py.
      keys_B: keys for dropout, one a row, or None.
    """
    return self.norm(x_BLD + self.branch(x_BLD, attend, keys_B))

  def branch(self, x_BLD: jax.Array, attend: Any, keys_B: Any) -> jax.Array:
    """Returns what is added to the residual; the arguments are those of a call."""
    key_probs, key_output = split_keys(keys_B, 2)
    q_BLD, k_BLD, v_BLD = (affine(self.cfg, getattr(self, name), x_BLD, name) for name in ("query", "key", "value"))
    y_BLD = affine(self.cfg, self.output, attend(q_BLD, k_BLD, v_BLD, key_probs), "output")
    return dropout(y_BLD, self.cfg.hidden_dropout_prob, key_output)


class FeedForward(nnx.Module):
  """Two dense layers with their residual and layer norm. is_transposed: see `with_transposed_kernel`."""

  def __init__(self, cfg: AlbertConfig, rngs: Any):
    self.cfg, self.is_transposed = cfg, False
    self.up = layer_dense(cfg, cfg.hidden_size, cfg.intermediate_size, rngs)
    self.down = layer_dense(cfg, cfg.intermediate_size, cfg.hidden_size, rngs)
    self.norm = layer_norm(cfg, cfg.hidden_size, rngs, use_bias=cfg.arch == "albert")

  def __call__(self, x_BLD: jax.Array, keys_B: Any) -> jax.Array:
    return self.norm(x_BLD + self.branch(x_BLD, keys_B))

  def branch(self, x_BLD: jax.Array, keys_B: Any) -> jax.Array:
    """Returns what is added to the residual; the arguments are those of a call."""
    y_BLD = affine(self.cfg, self.down, self.hidden(x_BLD), "down", self.is_transposed)
    return dropout(y_BLD, self.cfg.hidden_dropout_prob, keys_B)

  def hidden(self, x_BLD: jax.Array) -> jax.Array:
    """Returns the hidden units of the feed-forward part: [B, L, F]."""
    return activation(self.cfg, affine(self.cfg, self.up, x_BLD, "up"))


def with_transposed_kernel(ffn: Any) -> FeedForward:
  """Returns the FeedForward with the kernel of `down` as [..., D, F], the form in which all layers use it in training.

  Its gradient is then summed over layers as [D, F], which is a product of tokens x D by tokens x F. XLA's CPU compiler
  takes an eighth longer for the other order, and would use it if each layer transposed the kernel.
  Without a gradient this only costs: a quarter of the time of a single short text (docs/performance.md).
  """
  graphdef, state = nnx.split(ffn)
  state["down"]["kernel"] = jax.tree.map(lambda p: p.swapaxes(-1, -2), state["down"]["kernel"])
  ffn = nnx.merge(graphdef, state)
  ffn.is_transposed = True
  return ffn


def lead_axes(cfg: AlbertConfig, part: str, leaf: str = "kernel") -> tuple[int, ...]:
  """Returns the leading axes of a parameter of `part`: (copies,) if several layers or groups differ, then (inner,)."""
  return tuple(size for size in (cfg.copies(part, leaf), cfg.inner_group_num) if size > 1)


def stacked(make: Callable, cfg: AlbertConfig, part: str, rngs: Keys) -> nnx.Module:
  """Makes one module of all copies of `part`: its parameters have leading axes, and each index is drawn by itself.

  Args:
    make: rngs -> module.
    cfg: the model, which says what is shared.
    part: "attention" or "ffn".
    rngs: where keys come from.

  Returns:
    the module.
  """
  key = rngs.params()
  leads = {leaf: lead_axes(cfg, part, leaf) for leaf in ("kernel", "bias", *(LOW_RANK if cfg.layer_rank else ()))}
  # The same key serves all, as biases and layer norms are constants at first.
  modules = {lead: _stacked(make, lead, key) for lead in dict.fromkeys(leads.values())}
  mixed = modules[leads["bias"]]
  for leaf, lead in leads.items():
    if lead != leads["bias"]:
      nnx.update(mixed, nnx.state(modules[lead], lambda path, _, leaf=leaf: path[-1] == leaf))
  return mixed


def _stacked(make, lead, key):
  if not lead:
    return make(Keys(key))
  graphdef, _ = nnx.split(nnx.eval_shape(lambda: make(Keys())))

  def init(key):
    return nnx.split(make(Keys(key)))[1]

  for size in reversed(lead):
    init = jax.vmap(init, axis_size=size)
  return nnx.merge(graphdef, init(None if key is None else jax.random.split(key, lead)))


def indexed(state: nnx.State, index: int | slice) -> nnx.State:
  """Returns the state with every parameter indexed by `index` (an int or a slice) on its first axis."""
  return jax.tree.map(lambda p: p[index], state)


def at(module: nnx.Module, index: int) -> nnx.Module:
  """Returns the module with every parameter indexed by `index` on its first axis."""
  graphdef, state = nnx.split(module)
  return nnx.merge(graphdef, indexed(state, index))
