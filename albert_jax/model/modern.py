"""arch=modern: what differs from the paper's layer. Embeddings, sharing, the loop and the heads stay the same.

From ModernBERT (Warner et al., arXiv 2412.13663): rotary positions instead of a table, layer norms before attention
and feed-forward and after the last layer, a gated feed-forward part (GeGLU), no biases in the layers, and local
attention of 128 positions with a global layer every third. The first layer keeps its norm, as the embeddings are
projected after theirs. All layers rotate by 10,000; ModernBERT raises that of global layers to 160,000 only to extend
1,024 positions to 8,192.

From "On the Residual Scaling of Looped Transformers" (arXiv 2606.18524): what a layer adds to the residual is divided
by the number of times its weights are used, as those updates are correlated, and by the root of the number of different
weights.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from albert_jax.model import attention, layers
from albert_jax.model.config import GLOBAL_EVERY, WINDOW, AlbertConfig
from albert_jax.types import Batch

THETA = 10_000.0  # The slowest pair of columns turns once in 2 pi THETA positions.


class Attention(layers.Attention):
  """Multi-head self-attention of the normalised residual."""

  def __call__(self, x_BLD: jax.Array, attend: Any, keys_B: Any) -> jax.Array:
    return x_BLD + residual_scale(self.cfg, "attention") * self.branch(self.norm(x_BLD), attend, keys_B)


class FeedForward(layers.FeedForward):
  """The gated feed-forward part of the normalised residual: down(activation(up x) * gate x)."""

  def __init__(self, cfg: AlbertConfig, rngs: Any):
    super().__init__(cfg, rngs)
    self.gate = layers.layer_dense(cfg, cfg.hidden_size, cfg.intermediate_size, rngs)

  def __call__(self, x_BLD: jax.Array, keys_B: Any) -> jax.Array:
    return x_BLD + residual_scale(self.cfg, "ffn") * self.branch(self.norm(x_BLD), keys_B)

  def hidden(self, x_BLD: jax.Array) -> jax.Array:
    return super().hidden(x_BLD) * layers.affine(self.cfg, self.gate, x_BLD, "gate")


def residual_scale(cfg: AlbertConfig, part: str) -> float:
  """Returns the factor of what each layer adds: 1 / N where all N layers share weights, 1 / sqrt(N) where none do."""
  layers, different = cfg.num_hidden_layers * cfg.inner_group_num, cfg.copies(part) * cfg.inner_group_num
  return different**0.5 / layers


def attends(cfg: AlbertConfig, batch: Batch, drops: bool) -> list[Callable]:
  """Returns the attention functions of the first layers, as `attention.make`; those of later layers repeat them.

  Args:
    cfg: the model.
    batch: as `apply` checked it.
    drops: whether there is dropout of attention weights.
  """
  # In rows within the window all layers are alike. In an export for any length the length is no number.
  length = batch["input_ids"].shape[1]
  windows = [cfg.window_of(n) for n in range(1 if isinstance(length, int) and length <= WINDOW + 1 else GLOBAL_EVERY)]
  rotate = rotation(cfg, batch)
  kernels = {window: attention.make(cfg, batch, drops, window)[0] for window in dict.fromkeys(windows)}

  def rotated(kernel):
    return lambda q_BLD, k_BLD, v_BLD, keys_B: kernel(rotate(q_BLD), rotate(k_BLD), v_BLD, keys_B)

  return [rotated(kernels[window]) for window in windows]


def speeds(cfg: AlbertConfig) -> np.ndarray:
  """Returns the angles between neighbouring positions, one a pair of columns: float32 [K / 2]."""
  half = cfg.head_size // 2
  return (THETA ** (-np.arange(half) / half)).astype(np.float32)


def rotation(cfg: AlbertConfig, batch: Batch) -> Callable[[jax.Array], jax.Array]:
  """Returns the function that rotates each head's columns k and k + K/2 by an angle that grows with the position.

  Products of queries and keys then depend on the distance alone. In packed rows the positions begin anew in each
  example: distances within an example are the same either way, and so are the angles those of a row of its own.
  """
  length = batch["input_ids"].shape[1]
  positions_BL = batch.get("position_ids", jnp.arange(length)[None])
  angles_BL1K = positions_BL[:, :, None, None] * speeds(cfg)[None, None, None]
  cos_BL1K, sin_BL1K = jnp.cos(angles_BL1K), jnp.sin(angles_BL1K)

  def rotate(x_BLD):
    x_BLHK = x_BLD.reshape(*x_BLD.shape[:2], -1, cfg.head_size).astype(jnp.float32)
    a, b = jnp.split(x_BLHK, 2, axis=-1)
    x_BLHK = jnp.concatenate([a * cos_BL1K - b * sin_BL1K, b * cos_BL1K + a * sin_BL1K], axis=-1)
    return x_BLHK.astype(x_BLD.dtype).reshape(x_BLD.shape)

  return rotate
