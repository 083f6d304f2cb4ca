"""The two pre-training heads. Heads of fine-tuning tasks live with their task."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from albert_jax import nvidia
from albert_jax.model.config import AlbertConfig
from albert_jax.model.layers import activation, dense, layer_norm


class MlmHead(nnx.Module):
  """Masked language model: hidden state -> logits over the vocabulary, tied to the word embeddings.

  get_masked_lm_output in run_pretraining.py of the original: dense D -> E, activation, layer norm, then the
  transposed embedding matrix and a bias.
  """

  def __init__(self, cfg: AlbertConfig, rngs: Any):
    self.cfg = cfg
    self.dense = dense(cfg, cfg.hidden_size, cfg.embedding_size, rngs)
    self.norm = layer_norm(cfg, cfg.embedding_size, rngs)
    self.bias = nnx.Param(jnp.zeros(cfg.vocab_size))

  def __call__(self, x_BMD: jax.Array, embedding_VE: jax.Array) -> jax.Array:
    """Returns float32 logits [B, M, V]."""
    h_BME = self.norm(activation(self.cfg, self.dense(x_BMD)))
    table_VE = embedding_VE.astype(h_BME.dtype)
    logits_BMV = jnp.einsum("BME,VE->BMV", h_BME, table_VE, preferred_element_type=jnp.float32)
    return logits_BMV + self.bias[...][None, None, :]


class SopHead(nnx.Module):
  """Sentence-order prediction: pooled vector -> two logits (index 1: the segments are swapped). No dropout."""

  def __init__(self, cfg: AlbertConfig, rngs: Any):
    self.dense = dense(cfg, cfg.hidden_size, 2, rngs, dtype=jnp.float32)

  def __call__(self, pooled_BD: jax.Array) -> jax.Array:
    """Returns float32 logits [B, 2]."""
    return self.dense(pooled_BD)


def at_positions(x_BLD: jax.Array, positions_BM: jax.Array) -> jax.Array:
  """Returns the vectors at `positions_BM` (int, [B, M]) of each row: [B, M, D]."""
  if nvidia.is_target():
    return nvidia.at_positions(x_BLD, positions_BM)
  return jnp.take_along_axis(x_BLD, positions_BM[:, :, None], axis=1)


def pool(dense_layer: nnx.Module, x_BLD: jax.Array, cls_positions_BS: jax.Array | None = None) -> jax.Array:
  """tanh of a dense layer on the first position ([CLS]): [B, D]; in packed rows on each of theirs: [B, S, D]."""
  return jax.nn.tanh(dense_layer(x_BLD[:, 0] if cls_positions_BS is None else at_positions(x_BLD, cls_positions_BS)))
