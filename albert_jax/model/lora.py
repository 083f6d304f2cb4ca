"""Low-rank differences to the matrices of the layers and to the table of words, W + A B (LoRA, arXiv 2106.09685).

The scale alpha / rank of the paper is left to the learning rate.
"""

import jax
import jax.numpy as jnp

from albert_jax import paths
from albert_jax.model.config import AlbertConfig
from albert_jax.model.layers import Keys, initializer, lead_axes
from albert_jax.types import Params

# {matrix: how many of its axes are inputs}; axes that index layers, groups or inner groups come before. ffn/gate is of
# arch=modern.
MATRICES = {
  "embeddings/word": 1, "attention/query": 1, "attention/key": 1, "attention/value": 1, "attention/output": 2,
  "ffn/up": 1, "ffn/gate": 1, "ffn/down": 1,
}  # fmt: skip


def weight(matrix: str) -> str:
  """Returns the path of the array of one of MATRICES."""
  return f"{matrix}/embedding" if matrix == "embeddings/word" else f"{matrix}/kernel"


def init(cfg: AlbertConfig, params: Params, rank: int, word_rank: int, key: jax.Array) -> Params:
  """Makes fresh differences, which change nothing as B is zero.

  Args:
    cfg: the model.
    params: its parameters, or their shapes.
    rank: of A B for each matrix of the layers; 0 leaves them without.
    word_rank: of A B for the table of words, likewise.
    key: jax.random.key(seed).

  Returns:
    {part: {matrix: {"a": [*lead, *inputs, rank], "b": [*lead, rank, *outputs]}}}, float32.
  """
  keys, flat = Keys(key), paths.flatten(params)
  differences = {}
  for matrix, inputs in MATRICES.items():
    part = matrix.split("/")[0]
    this_rank = word_rank if part == "embeddings" else rank
    if not this_rank or weight(matrix) not in flat:
      continue
    shape = flat[weight(matrix)].shape
    lead = 0 if part == "embeddings" else len(lead_axes(cfg, part))
    split = lead + inputs
    differences[f"{matrix}/a"] = initializer(cfg)(keys.params(), (*shape[:split], this_rank))
    differences[f"{matrix}/b"] = jnp.zeros((*shape[:lead], this_rank, *shape[split:]))
  return paths.unflatten(differences)


def merged(params: Params) -> Params:
  """Adds the differences, `params["lora"]`, to the matrices.

  Args:
    params: of a model, with or without differences.

  Returns:
    the parameters without "lora", of the same shapes.
  """
  if "lora" not in params:
    return params
  flat = paths.flatten({name: part for name, part in params.items() if name != "lora"})
  differences = paths.flatten(params["lora"])
  for matrix, inputs in MATRICES.items():
    if f"{matrix}/a" not in differences:
      continue
    whole, a, b = flat[weight(matrix)], differences[f"{matrix}/a"], differences[f"{matrix}/b"]
    lead, rank = whole.shape[: a.ndim - 1 - inputs], a.shape[-1]
    product = a.reshape(*lead, -1, rank) @ b.reshape(*lead, rank, -1)
    flat[weight(matrix)] = whole + product.reshape(whole.shape)
  return paths.unflatten(flat)
