"""A model as pure functions of a config and a nested dict of parameters. Flax is visible only inside this package."""

import contextlib
import contextvars
import dataclasses
import difflib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from albert_jax.errors import UserError
from albert_jax.model.albert import Albert, structure
from albert_jax.model.config import STRUCTURE, VARIANTS, AlbertConfig
from albert_jax.model.layers import Keys, lead_axes
from albert_jax.model.layerwise import by_layer, last_projections
from albert_jax.types import Batch, Params

__all__ = [
  "STRUCTURE",
  "VARIANTS",
  "AlbertConfig",
  "Call",
  "apply",
  "by_layer",
  "finish",
  "init",
  "inputs",
  "last_projections",
  "layer_axes",
  "param_count",
  "recorded",
  "shapes",
]

INPUTS = (
  "input_ids", "attention_mask", "token_type_ids", "mlm_positions", "segment_ids", "position_ids", "cls_positions",
)  # fmt: skip
# Additional arrays of a pre-training batch of text or phonemes; `apply` accepts and ignores them.
LABELS = ("mlm_labels", "mlm_weights", "sop_label", "sop_weight", "word_positions")
OPTIONAL = ("pooler", "mlm", "sop")  # Parts a checkpoint may lack.


def init(cfg: AlbertConfig, key: jax.Array) -> Params:
  """Makes fresh parameters, with pooler, MLM head and SOP head.

  Args:
    cfg: the model.
    key: jax.random.key(seed).
  Returns:
    nested dict of float32 arrays.
  """
  return nnx.to_pure_dict(nnx.split(Albert(cfg, Keys(key)))[1])


def shapes(cfg: AlbertConfig, parts: tuple[str, ...] = OPTIONAL) -> Params:
  """Returns the tree of `init` with shapes and dtypes instead of arrays.

  Args:
    cfg: the model.
    parts: which of the optional parts it has.
  Returns:
    nested dict of jax.ShapeDtypeStruct.
  """
  return nnx.to_pure_dict(structure(cfg, tuple(parts))[1])


def apply(cfg: AlbertConfig, params: Params, batch: Batch, key: jax.Array | None = None) -> dict[str, jax.Array]:
  """Runs the model. Without a key there is no dropout or noise, and the result depends on `params` and `batch` alone.

  Args:
    cfg: the model.
    params: as `init` makes them; without "mlm", "sop" or "pooler" the outputs that need them are absent. Parts that are
      not the model's (a task's head) are ignored.
    batch: input_ids [B, L] int32; attention_mask [B, L] (1 = token) and token_type_ids [B, L], by default all ones
      and all zeros; mlm_positions [B, M] int32, optional. Packed rows (data.packing) also have segment_ids [B, L]
      (which example, from 1; 0 is padding), position_ids [B, L] and cls_positions [B, S].
    key: jax.random key for dropout, or [B] of them, one a row. One key becomes `fold_in(key, row)` for each row. With a
      key the layers are laid out for their gradient, also where there is no dropout.
  Returns:
    sequence_output [B, L, D] and, where the parameters exist, pooled_output [B, D] ([B, S, D] of packed rows),
    mlm_logits [B, M, V] (at all L positions without mlm_positions) and sop_logits [B, 2] ([B, S, 2]), both float32.
  Raises:
    UserError: rows are longer than max_position_embeddings, ids are no whole numbers or, outside jit, outside the
      vocabulary, `batch` has a misspelt key, or `params` lack a part.
  """
  batch = _checked(cfg, dict(batch))
  parts = tuple(part for part in OPTIONAL if part in params)
  needed = {*shapes(cfg, parts), *(("pooler",) if "sop" in parts else ())}
  if missing := sorted(needed - params.keys()):
    raise UserError(f"these parameters are missing: {missing}; there are {sorted(params)}")
  keys_B = _row_keys(cfg, batch, key)
  if key is None and cfg.quantization_noise:
    cfg = dataclasses.replace(cfg, quantization_noise=False)
  calls, keeps_hidden = _RECORD.get()
  needed_params = {name: params[name] for name in needed}
  out = _apply(cfg, parts, key is not None, keeps_hidden, needed_params, batch, keys_B)
  if calls is not None:
    calls.append(Call(cfg, params, batch, out))
  return {name: value for name, value in out.items() if name != "hidden"}


def finish(cfg: AlbertConfig, params: Params, x_BLD: jax.Array, batch: Batch) -> dict[str, jax.Array]:
  """Returns what `apply` would return, had the layers ended with the output `x_BLD`.

  Args:
    batch: as of a Call.
  """
  parts = tuple(part for part in OPTIONAL if part in params)
  graphdef, abstract = structure(cfg, parts)
  return nnx.merge(graphdef, {name: params[name] for name in nnx.to_pure_dict(abstract)}).finish(x_BLD, batch)


@dataclass(frozen=True)
class Call:
  """A call of `apply`.

  Attributes:
    cfg, params: its arguments.
    batch: the arrays that the model read, with all defaults.
    out: its results and, if they are kept, "hidden" [N + 1, B, L, D]: the input of the first layer, then the output of
      each layer.
  """

  cfg: AlbertConfig
  params: Params
  batch: Batch
  out: dict[str, jax.Array]


# (the list to which calls are added, whether hidden states are kept)
_Record = tuple[list[Call] | None, bool]
_RECORD: contextvars.ContextVar[_Record] = contextvars.ContextVar("record", default=(None, False))


@contextlib.contextmanager
def recorded(keeps_hidden: bool) -> Iterator[list[Call]]:
  """Collects each Call of `apply` in this context, so that a task's loss need not return what the encoder computes.

  The results of `apply` are the same. Inside a traced function, the arrays are usable in the same trace.

  Args:
    keeps_hidden: whether "hidden" is among the results of a Call.

  Yields:
    the list to which calls are added.
  """
  calls: list[Call] = []
  outer, outer_keeps_hidden = _RECORD.get()
  token = _RECORD.set((calls, keeps_hidden or outer_keeps_hidden))
  try:
    yield calls
  finally:
    _RECORD.reset(token)
    if outer is not None:
      outer.extend(calls)


# Always compiled: run op by op, the scan would be compiled again at every call.
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), inline=True)
def _apply(cfg, parts, is_training, keeps_hidden, params, batch, keys_B):
  return nnx.merge(structure(cfg, parts)[0], params)(batch, keys_B, is_training, keeps_hidden)


def _row_keys(cfg: AlbertConfig, batch: Batch, key: jax.Array | None) -> jax.Array | None:
  if key is None or cfg.hidden_dropout_prob == cfg.attention_probs_dropout_prob == 0:
    return None  # Without dropout, no random numbers are drawn.
  rows = batch["input_ids"].shape[0]
  return key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def inputs(batch: Batch) -> dict[str, Any]:
  """Returns the arrays of a batch that the model reads; a task's batch also has labels and weights."""
  return {name: batch[name] for name in INPUTS if name in batch}


def param_count(params: Params) -> int:
  """Returns the number of parameters in the tree."""
  return sum(int(np.prod(p.shape)) for p in jax.tree.leaves(params))


def layer_axes(cfg: AlbertConfig, params: Params) -> Params:
  """Counts, for each parameter, the leading axes that index layers, groups or inner groups.

  An optimizer with a norm per weight matrix (LAMB) takes its norms over the other axes.

  Args:
    cfg: the model.
    params: arrays or their shapes.
  Returns:
    the same tree with an int for each parameter.
  """

  def count(path, _):
    part, leaf = path[0].key, path[-1].key
    return len(lead_axes(cfg, part, leaf)) if part in ("attention", "ffn") else 0

  return jax.tree_util.tree_map_with_path(count, params)


def _checked(cfg: AlbertConfig, batch: dict[str, Any]) -> dict[str, Any]:
  absent = [name for name in INPUTS if name not in batch]
  for name in sorted(batch.keys() - {*INPUTS, *LABELS}):
    # A batch may have arrays of a task, so only a name similar to that of an input is a mistake.
    if near := difflib.get_close_matches(name, absent, 1, 0.6) or ["attention_mask"] * (name == "mask"):
      raise UserError(f"a batch has no {name!r}; did you mean {near[0]!r}? There are {', '.join(INPUTS)}")
  if "input_ids" not in batch:
    raise UserError("a batch needs input_ids, whole numbers of shape [B, L]")
  ids_BL = batch["input_ids"]
  if not jnp.issubdtype(ids_BL.dtype, jnp.integer) or ids_BL.ndim != 2:
    raise UserError(f"input_ids must be whole numbers of shape [B, L]; got {ids_BL.dtype}{list(ids_BL.shape)}")
  length = ids_BL.shape[1]
  if length > cfg.max_position_embeddings:
    raise UserError(
      f"the rows are {length} tokens long, the model has {cfg.max_position_embeddings} positions; "
      f"shorten them or set max_position_embeddings={length} and train those positions"
    )
  batch.setdefault("attention_mask", jnp.ones_like(ids_BL))
  batch.setdefault("token_type_ids", jnp.zeros_like(ids_BL))
  for name, size in {"input_ids": cfg.vocab_size, "token_type_ids": cfg.type_vocab_size}.items():
    # Inside jit, values are unknown and the lookup clamps, so callers check the ids (tasks do).
    if not isinstance(batch[name], jax.core.Tracer) and batch[name].size:
      values = np.asarray(batch[name])
      low, high = values.min(), values.max()
      if low < 0 or high >= size:
        raise UserError(f"{name} reach from {low} to {high}, the model has 0 to {size - 1}: is this its vocabulary?")
  return batch
