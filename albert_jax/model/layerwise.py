"""What happens inside a model: the output and the attention weights of every layer, for pictures and analyses."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from albert_jax.model import modern
from albert_jax.model.albert import structure
from albert_jax.model.attention import LOWEST, mask
from albert_jax.model.config import AlbertConfig
from albert_jax.types import Batch, Params


def by_layer(cfg: AlbertConfig, params: Params, batch: Batch) -> dict[str, jax.Array]:
  """Runs the encoder layer by layer, without dropout, and keeps what each layer computes.

  The memory it takes grows with depth and with the square of the length, so it is for a few short rows.

  Args:
    cfg: the model.
    params: as `albert_jax.init` makes them; heads are ignored.
    batch: input_ids [B, L] int32; attention_mask and token_type_ids [B, L], optional.

  Returns:
    hidden [N + 1, B, L, D]: the input of the first layer, then the output of each layer, with arch=modern before the
    norm after the last; attention [N, B, H, L, L]: the
    weights with which each position (last axis but one) reads each other (last axis), float32. With
    inner_group_num = i a layer has i attentions, and the first axis of attention is i * N long.
  """
  ids_BL = jnp.asarray(batch["input_ids"])
  mask_BL = jnp.asarray(batch.get("attention_mask", jnp.ones_like(ids_BL)))
  types_BL = jnp.asarray(batch.get("token_type_ids", jnp.zeros_like(ids_BL)))
  graphdef, state = structure(cfg, ())
  model = nnx.merge(graphdef, {name: params[name] for name in nnx.to_pure_dict(state)})
  weights = []
  plain = {"input_ids": ids_BL, "attention_mask": mask_BL}
  rotate = modern.rotation(cfg, plain) if cfg.arch == "modern" else lambda x_BLD: x_BLD

  def attend(window, q_BLD, k_BLD, v_BLD, _):
    q_BLD, k_BLD = rotate(q_BLD), rotate(k_BLD)
    q_BLHK, k_BLHK, v_BLHK = (x.reshape(*x.shape[:2], -1, cfg.head_size) for x in (q_BLD, k_BLD, v_BLD))
    scores_BHLl = jnp.einsum("BLHK,BlHK->BHLl", q_BLHK, k_BLHK, preferred_element_type=jnp.float32)
    scores_BHLl = jnp.where(mask(plain, window), scores_BHLl * cfg.head_size**-0.5, LOWEST)
    weights.append(jax.nn.softmax(scores_BHLl, axis=-1))
    return jnp.einsum("BHLl,BlHK->BLHK", weights[-1].astype(v_BLHK.dtype), v_BLHK).reshape(q_BLD.shape)

  hidden = [model.embed({"input_ids": ids_BL, "token_type_ids": types_BL}, None)]
  for n in range(cfg.num_hidden_layers):
    parts = {name: _of_layer(cfg, name, getattr(model, name), n) for name in ("attention", "ffn")}
    hidden.append(model.layer(parts, hidden[-1], functools.partial(attend, cfg.window_of(n)), None))
  return {"hidden": jnp.stack(hidden), "attention": jnp.stack(weights)}


def last_projections(cfg: AlbertConfig, params: Params, x_BLD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Computes the queries, keys and values of the last layer, without dropout.

  Args:
    cfg: the model; inner_group_num must be 1.
    params: as for `by_layer`.
    x_BLD: the input of the last layer.

  Returns:
    three arrays [B, L, D].
  """
  graphdef, state = structure(cfg, ())
  model = nnx.merge(graphdef, {name: params[name] for name in nnx.to_pure_dict(state)})
  projections = []

  def attend(q_BLD, k_BLD, v_BLD, _):
    projections.extend((q_BLD, k_BLD, v_BLD))
    return v_BLD

  _of_layer(cfg, "attention", model.attention, cfg.num_hidden_layers - 1)(x_BLD, attend, None)
  return tuple(projections)


def _of_layer(cfg, part, module, n):
  """The module of layer n: what layers share, and the layer's own copies of the rest."""

  def of_layer(path, state):
    copies = cfg.copies(part, path[-1].key)
    index = n if copies == cfg.num_hidden_layers else cfg.group_of(n)
    return state if copies == 1 else state[index]

  graphdef, state = nnx.split(module)
  return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(of_layer, nnx.to_pure_dict(state)))
