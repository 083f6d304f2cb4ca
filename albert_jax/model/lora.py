"""Low-rank differences to the weight matrices of the layers, W + A B (LoRA, Hu et al., arXiv 2106.09685).

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
  "attention/query": 1, "attention/key": 1, "attention/value": 1, "attention/output": 2, "ffn/up": 1, "ffn/gate": 1,
  "ffn/down": 1,
}  # fmt: skip


def matrices(flat: Params) -> dict[str, int]:
  """Returns those of MATRICES that a model, {path: array}, has."""
  return {path: inputs for path, inputs in MATRICES.items() if f"{path}/kernel" in flat}


def init(cfg: AlbertConfig, params: Params, rank: int, key: jax.Array) -> Params:
  """Makes fresh differences, which change nothing as B is zero.

  Args:
    cfg: the model.
    params: its parameters, or their shapes.
    rank: of A B.
    key: jax.random.key(seed).

  Returns:
    {part: {matrix: {"a": [*lead, *inputs, rank], "b": [*lead, rank, *outputs]}}}, float32.
  """
  keys, flat = Keys(key), paths.flatten(params)
  differences = {}
  for path, inputs in matrices(flat).items():
    shape = flat[f"{path}/kernel"].shape
    split = len(lead_axes(cfg, path.split("/")[0])) + inputs
    differences[f"{path}/a"] = initializer(cfg)(keys.params(), (*shape[:split], rank))
    differences[f"{path}/b"] = jnp.zeros((*shape[: split - inputs], rank, *shape[split:]))
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
  for path, inputs in matrices(flat).items():
    kernel, a, b = flat[f"{path}/kernel"], differences[f"{path}/a"], differences[f"{path}/b"]
    lead = kernel.shape[: a.ndim - 1 - inputs]
    rank = a.shape[-1]
    flat[f"{path}/kernel"] = kernel + (a.reshape(*lead, -1, rank) @ b.reshape(*lead, rank, -1)).reshape(kernel.shape)
  return paths.unflatten(flat)
