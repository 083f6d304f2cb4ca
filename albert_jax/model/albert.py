"""ALBERT: factorised embeddings, one layer applied repeatedly, two pre-training heads.

Lan et al., "ALBERT: A Lite BERT for Self-supervised Learning of Language Representations" (arXiv 1909.11942);
the original is modeling.py and run_pretraining.py of google-research/albert.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from albert_jax import nvidia
from albert_jax.model import attention, modern
from albert_jax.model.config import AlbertConfig
from albert_jax.model.heads import MlmHead, SopHead, at_positions, pool
from albert_jax.model.layers import (
  Attention,
  FeedForward,
  Keys,
  at,
  dense,
  dropout,
  indexed,
  initializer,
  layer_norm,
  lookup,
  split_keys,
  stacked,
  with_transposed_kernel,
)
from albert_jax.types import Batch

# The results of a layer that are saved for the backward pass, besides its input, by their names in layers.py and
# attention.py. Attention scores and probabilities are never saved; they are the largest and cheap to recompute.
_PROJECTIONS = ("query", "key", "value", "context")
REMAT = {"dots": (*_PROJECTIONS, "output", "up", "gate", "down"), "attention": _PROJECTIONS, "full": ()}


def _policy(remat):
  named = jax.checkpoint_policies.save_only_these_names(*REMAT[remat])

  def keeps(primitive, *inputs, **parameters):
    # cuDNN's kernel returns the residuals of its backward pass, which have no name, beside the context.
    fused = primitive.name.startswith("dot_product_attention_fwd") and "context" in REMAT[remat]
    return fused or named(primitive, *inputs, **parameters)

  return keeps


class Embeddings(nnx.Module):
  """Word + position + segment embeddings of size E, normalised (section 3.1: E is much smaller than D)."""

  def __init__(self, cfg: AlbertConfig, rngs: Any):
    def table(rows):
      return nnx.Embed(rows, cfg.embedding_size, embedding_init=initializer(cfg), rngs=rngs)

    self.cfg = cfg
    self.word = table(cfg.vocab_size)
    self.position = table(cfg.max_position_embeddings) if cfg.arch == "albert" else None
    self.token_type = table(cfg.type_vocab_size)
    self.norm = layer_norm(cfg, cfg.embedding_size, rngs)

  def __call__(self, ids_BL: jax.Array, types_BL: jax.Array, positions_BL: jax.Array | None, keys_B: Any) -> jax.Array:
    x_BLE = lookup(self.word, ids_BL) + lookup(self.token_type, types_BL)
    if self.position is None:
      pass  # The layers rotate queries and keys instead.
    elif positions_BL is None:
      x_BLE = x_BLE + self.position.embedding[None, : ids_BL.shape[1], :]
    else:
      x_BLE = x_BLE + lookup(self.position, positions_BL)
    return dropout(self.norm(x_BLE), self.cfg.hidden_dropout_prob, keys_B)


class Albert(nnx.Module):
  """The whole model. `parts` lists its optional parts: pooler, mlm, sop."""

  def __init__(self, cfg: AlbertConfig, rngs: Keys, parts: tuple[str, ...] = ("pooler", "mlm", "sop")):
    E, D = cfg.embedding_size, cfg.hidden_size
    self.cfg = cfg
    self.embeddings = Embeddings(cfg, rngs)
    self.projection = dense(cfg, E, D, rngs) if E != D or cfg.square_projection else None
    is_modern = cfg.arch == "modern"
    attention_type, ffn_type = (modern.Attention, modern.FeedForward) if is_modern else (Attention, FeedForward)
    self.attention = stacked(lambda rngs: attention_type(cfg, rngs), cfg, "attention", rngs)
    self.ffn = stacked(lambda rngs: ffn_type(cfg, rngs), cfg, "ffn", rngs)
    self.norm = layer_norm(cfg, D, rngs, use_bias=False) if is_modern else None
    self.pooler = dense(cfg, D, D, rngs) if "pooler" in parts else None
    self.mlm = MlmHead(cfg, rngs) if "mlm" in parts else None
    self.sop = SopHead(cfg, rngs) if "sop" in parts else None

  def __call__(
    self, batch: Batch, keys_B: Any = None, is_training: bool = False, keeps_hidden: bool = False
  ) -> dict[str, jax.Array]:
    """Runs the model; see `albert_jax.apply`.

    Args:
      batch: the batch, with all defaults.
      keys_B: [B] keys for dropout, or None.
      is_training: whether there will be a gradient. It changes the layout of the layers, and no number.
      keeps_hidden: whether "hidden" is among the results, see `model.recorded`.
    Returns:
      {name: array}.
    """
    key_embed, key_layers = split_keys(keys_B, 2)
    x_BLD = self.embed(batch, key_embed)
    drops = keys_B is not None and self.cfg.attention_probs_dropout_prob > 0
    if self.cfg.arch == "modern":
      attends, order_BL = modern.attends(self.cfg, batch, drops), None
    else:
      attend, order_BL = attention.make(self.cfg, batch, drops)
      attends = [attend]
    a_turn = attention.layers_a_turn(self.cfg, batch, drops)
    if order_BL is None:
      x_BLD, hidden = self.layers(x_BLD, attends, key_layers, is_training, a_turn, keeps_hidden)
    else:
      back_BL = jnp.argsort(order_BL, axis=1)
      x_BLD = nvidia.reordered(x_BLD, order_BL, back_BL)
      x_BLD, hidden = self.layers(x_BLD, attends, key_layers, is_training, a_turn, keeps_hidden)
      x_BLD = nvidia.reordered(x_BLD, back_BL, order_BL)
      hidden = [jax.vmap(nvidia.reordered, (0, None, None))(x_NBLD, back_BL, order_BL) for x_NBLD in hidden]

    out = self.finish(x_BLD, batch)
    if keeps_hidden:
      out["hidden"] = jnp.concatenate([*hidden, x_BLD[None]])
    return out

  def finish(self, x_BLD: jax.Array, batch: Batch) -> dict[str, jax.Array]:
    """Applies the pooler and the heads of pre-training to the output of a layer."""
    x_BLD = x_BLD if self.norm is None else self.norm(x_BLD)
    out = {"sequence_output": x_BLD}
    if self.mlm is not None:
      x_BMD = at_positions(x_BLD, batch["mlm_positions"]) if "mlm_positions" in batch else x_BLD
      out["mlm_logits"] = self.mlm(x_BMD, self.embeddings.word.embedding[...])
    if self.pooler is not None:
      out["pooled_output"] = pool(self.pooler, x_BLD, batch.get("cls_positions"))
    if self.sop is not None:
      out["sop_logits"] = self.sop(out["pooled_output"])
    return out

  def embed(self, batch: Batch, keys_B: Any) -> jax.Array:
    """Returns the input of the first layer: [B, L, D]."""
    x_BLD = self.embeddings(batch["input_ids"], batch["token_type_ids"], batch.get("position_ids"), keys_B)
    return x_BLD if self.projection is None else self.projection(x_BLD)

  def layers(
    self, x_BLD: jax.Array, attends: list[Callable], keys_B: Any, is_training: bool, a_turn: int, keeps_hidden: bool
  ) -> tuple[jax.Array, list[jax.Array]]:
    """Runs all N layers, group by group, `a_turn` layers a turn of a loop.

    Shared parameters are closed over, all others are scanned. Layer n attends by `attends[n % len(attends)]`.

    Returns:
      the output of the last layer, and for each group the inputs of its layers [n, B, L, D]; [] unless `keeps_hidden`.
    """
    cfg = self.cfg
    N = cfg.num_hidden_layers
    keys_NB = None if keys_B is None else jnp.stack(split_keys(keys_B, N))
    parts = {"attention": self.attention, "ffn": with_transposed_kernel(self.ffn) if is_training else self.ffn}
    # {part: (structure, parameters with a copy for every layer, those with a copy for every group)}. The former are
    # scanned, the latter closed over.
    split: dict[str, Any] = {
      name: nnx.split(m, lambda path, _, name=name: cfg.copies(name, path[-1]) == N > 1, ...)
      for name, m in parts.items()
    }
    groups = cfg.groups if jax.tree.leaves([shared for _, _, shared in split.values()]) else 1
    hidden = []
    for group in range(groups):
      layers = [n for n in range(N) if groups == 1 or cfg.group_of(n) == group]
      span = slice(layers[0], layers[-1] + 1)
      states = {name: indexed(scanned, span) for name, (_, scanned, _) in split.items()}
      closed = {name: shared if groups == 1 else indexed(shared, group) for name, (_, _, shared) in split.items()}

      def layer(attend, x_BLD, scanned, closed=closed):
        states, keys_B = scanned
        modules = {name: nnx.merge(split[name][0], states[name], closed[name]) for name in split}
        return self.layer(modules, x_BLD, attend, keys_B), x_BLD if keeps_hidden else None

      unroll = min(a_turn, len(layers))
      forms: list[Callable] = [
        functools.partial(layer, attends[n % len(attends)]) for n in range(span.start, span.start + len(attends))
      ]
      if cfg.remat != "none":
        # The compiler does not merge what is computed again with the first time across turns of a loop. In a turn of
        # several layers it may, which suits `dots`: the rest is then computed again where that is faster.
        prevents = max(unroll, len(forms)) > 1 and cfg.remat != "dots"
        forms = [jax.checkpoint(form, policy=_policy(cfg.remat), prevent_cse=prevents) for form in forms]
      xs = (states, None if keys_NB is None else keys_NB[span])
      x_BLD, inputs = _scan(forms, x_BLD, xs, len(layers), unroll)
      hidden += inputs if keeps_hidden else []
    return x_BLD, hidden

  def layer(self, parts: Any, x_BLD: jax.Array, attend: Callable, keys_B: Any) -> jax.Array:
    """Runs one layer: `inner_group_num` blocks of attention and feed-forward."""
    inner = self.cfg.inner_group_num
    for i, key_i in enumerate(split_keys(keys_B, inner)):
      attention, ffn = (parts[name] if inner == 1 else at(parts[name], i) for name in ("attention", "ffn"))
      key_attention, key_ffn = split_keys(key_i, 2)
      x_BLD = ffn(attention(x_BLD, attend, key_attention), key_ffn)
    return x_BLD


def _scan(forms, x_BLD, xs, length, unroll):
  """Applies `forms` in turn, `length` times in all, each to its predecessor's result and the next of xs.

  The body of the loop has one of each.

  Returns:
    the last result, and a list of the second results of all, stacked.
  """
  if len(forms) == 1:
    x_BLD, kept = jax.lax.scan(forms[0], x_BLD, xs, length=length, unroll=unroll)
    return x_BLD, [kept]
  turns, rest = divmod(length, len(forms))
  results = []

  def turn(x_BLD, of_turn):
    kept = []
    for i, form in enumerate(forms):
      x_BLD, second = form(x_BLD, indexed(of_turn, i))
      kept.append(second)
    return x_BLD, jax.tree.map(lambda *seconds: jnp.stack(seconds), *kept)

  if turns:
    by_turn = jax.tree.map(lambda x: x[: length - rest].reshape(turns, len(forms), *x.shape[1:]), xs)
    x_BLD, kept = jax.lax.scan(turn, x_BLD, by_turn, length=turns, unroll=max(1, unroll // len(forms)))
    results.append(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), kept))
  for i in range(rest):
    x_BLD, second = forms[i](x_BLD, indexed(xs, length - rest + i))
    results.append(jax.tree.map(lambda x: x[None], second))
  return x_BLD, results


@functools.lru_cache(maxsize=64)
def structure(cfg: AlbertConfig, parts: tuple[str, ...]) -> Any:
  """Returns (graphdef, abstract state) of the model: its code and its shapes, without any array."""
  return nnx.split(nnx.eval_shape(lambda: Albert(cfg, Keys(), parts)))
