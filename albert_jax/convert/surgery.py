"""Changes the vocabulary, length, depth or sharing of a trained model, keeping its weights as a start.

Every function takes and returns (AlbertConfig, params) with params a nested dict of float32 numpy arrays.
"""

import dataclasses
from typing import Any

import numpy as np

from albert_jax import paths
from albert_jax.convert.mapping import copy_of
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig
from albert_jax.model.modern import residual_scale
from albert_jax.types import Params


def new_vocabulary(cfg: AlbertConfig, params: Params, old: Any, new: Any) -> tuple[AlbertConfig, Params, int]:
  """Changes the vocabulary: rows of pieces in both vocabularies are kept, those of new pieces are fresh.

  Special pieces are matched by what they do, since WordPiece and SentencePiece spell them differently.

  Args:
    old, new: `Tokenizer`s, or symbol tables.

  Returns:
    (cfg, params, how many rows were kept).

  Raises:
    UserError: `old` is not the vocabulary of these weights.
  """
  if old.vocab_size > cfg.vocab_size:
    raise UserError(
      f"the vocabulary {old.path} has {old.vocab_size} pieces, the model only {cfg.vocab_size} rows: it belongs to "
      "another model"
    )
  names = ("pad_id", "unk_id", "cls_id", "sep_id", "mask_id", "space_id")
  specials = [name for name in names if hasattr(old, name) and hasattr(new, name)]
  theirs, ours = ([getattr(tokenizer, name) for name in specials] for tokenizer in (old, new))
  rows = {piece: i for i, piece in enumerate(old.pieces) if piece and i not in theirs}
  source = np.array([-1 if i in ours else rows.get(piece, -1) for i, piece in enumerate(new.pieces)])
  source[ours] = theirs
  cfg = dataclasses.replace(cfg, vocab_size=new.vocab_size)
  flat = dict(paths.flatten(params))
  fresh = {
    "embeddings/word/embedding": _truncated_normal((new.vocab_size, cfg.embedding_size), cfg.initializer_range),
    "mlm/bias": np.zeros(new.vocab_size, np.float32),
    "phoneme/bias": np.zeros(new.vocab_size, np.float32),
  }
  if "phoneme/kernel" in flat:
    kernel = _truncated_normal((new.vocab_size, cfg.hidden_size), cfg.initializer_range)
    kernel[source >= 0] = flat["phoneme/kernel"].T[source[source >= 0]]
    flat["phoneme/kernel"] = np.ascontiguousarray(kernel.T)
  for path in fresh.keys() & flat.keys():
    fresh[path][source >= 0] = flat[path][source[source >= 0]]
    flat[path] = fresh[path]
  return cfg, paths.unflatten(flat), int((source >= 0).sum())


def _truncated_normal(shape, deviation):
  """Returns the original's initialiser: normal, drawn again beyond two deviations."""
  rng = np.random.default_rng(0)
  values = rng.standard_normal(shape)
  while (far := np.abs(values) > 2).any():
    values[far] = rng.standard_normal(far.sum())
  return (deviation * values).astype(np.float32)


def longer(cfg: AlbertConfig, params: Params, length: int, how: str = "tile") -> tuple[AlbertConfig, Params]:
  """Changes the number of positions.

  Args:
    how: "tile" repeats the old positions (n mod the old number), which keeps the relation of near neighbours;
      "interpolate" stretches the old positions over the new length.
  """
  old, cfg = params["embeddings"].get("position"), dataclasses.replace(cfg, max_position_embeddings=length)
  if old is None:  # arch=modern has no table.
    return cfg, params
  old = old["embedding"]
  if how == "tile":
    table = old[np.arange(length) % len(old)]
  elif how == "interpolate":
    at = np.linspace(0, len(old) - 1, length)
    low = np.floor(at).astype(int)
    share = (at - low)[:, None].astype(np.float32)
    table = old[low] * (1 - share) + old[np.minimum(low + 1, len(old) - 1)] * share
  else:
    raise UserError(f"positions={how!r} is unknown; use tile or interpolate")
  embeddings = {**params["embeddings"], "position": {"embedding": table.astype(np.float32)}}
  return cfg, {**params, "embeddings": embeddings}


def restructured(
  cfg: AlbertConfig, params: Params, *, from_group0: bool = False, **fields: Any
) -> tuple[AlbertConfig, Params]:
  """Changes the number of layers or groups, or reduces sharing; each layer starts from the one at its relative depth.

  If all layers share their weights, depth changes no weight; the paper trains its deeper models this way, each from
  the one before (appendix, "effect of network depth and width"). From one group, all groups start equal.

  Args:
    fields: num_hidden_layers, num_hidden_groups, share: of the new config.
    from_group0: start every group from group 0 (init_from_group0 of the original), even if there were several.
  """
  if fields.get("share") == "none":
    fields = {"unshared_ends": 0, "layer_rank": 0, **fields}
  new = dataclasses.replace(cfg, **fields)
  flat = dict(paths.flatten(params))
  for path in [path for path in flat if path.startswith(("attention/", "ffn/"))]:
    part, leaf = path.split("/")[0], path.rsplit("/", 1)[-1]
    copies, new_copies = cfg.copies(part, leaf), new.copies(part, leaf)
    if new_copies < copies and new.num_hidden_layers >= cfg.num_hidden_layers and not from_group0:
      raise UserError(f"{copies} sets of {part} weights cannot become {new_copies}; sharing can only be reduced")
    users = {}
    for n in range(new.num_hidden_layers):
      users.setdefault(copy_of(new, part, n, leaf), n)
    olds = [n * cfg.num_hidden_layers // new.num_hidden_layers for _, n in sorted(users.items())]
    source = [0 if from_group0 else copy_of(cfg, part, n, leaf) for n in olds]
    value = flat[path] if copies > 1 else flat[path][None]
    flat[path] = value[source] if new_copies > 1 else value[source[0]]
  if cfg.layer_rank and not new.layer_rank:  # Each layer has matrices of its own now, which take the differences in.
    for path in [path.removesuffix("/a") for path in flat if path.endswith("/a")]:
      a, b, kernel = flat.pop(f"{path}/a"), flat.pop(f"{path}/b"), flat[f"{path}/kernel"]
      flat[f"{path}/kernel"] = kernel + (a @ b).reshape(kernel.shape)
  _keep_residual_scale(cfg, new, flat)
  return new, paths.unflatten(flat)


def with_low_rank_differences(
  cfg: AlbertConfig, params: Params, *, layer_rank: int, share: str = "matrices", num_hidden_groups: int = 1
) -> tuple[AlbertConfig, Params, float]:
  """Makes layers that share nothing share their matrices, each with a difference A B of low rank.

  A shared matrix is the mean over its layers. A B is the best approximation of what a layer's matrix differs from it,
  by singular value decomposition ("Relaxed Recursive Transformers", arXiv 2410.20672). Parameters that are shared
  besides, biases and layer norms with share=all, are means.

  Args:
    cfg, params: a model whose layers share nothing.
    layer_rank: columns of A.
    share, num_hidden_groups: of the new config.

  Returns:
    (cfg, params, the share of the squared norm of all differences that A B have).

  Raises:
    UserError: the layers share weights already, or the rank exceeds the model's width.
  """
  N, most = cfg.num_hidden_layers, min(cfg.hidden_size, cfg.intermediate_size)
  if N == 1 or cfg.layer_rank or any(cfg.copies(part) < N for part in ("attention", "ffn")):
    raise UserError(
      f"layer_rank={layer_rank} needs a model of several layers that share nothing, and this one has share={cfg.share} "
      f"and {N} layers; fresh differences of a shared model are --config.model.layer_rank={layer_rank} of "
      "albert-jax train"
    )
  if share not in ("all", "matrices"):
    raise UserError(f"share={share!r} leaves matrices that no layer shares; with layer_rank use all or matrices")
  if not 0 < layer_rank <= most:
    raise UserError(f"layer_rank={layer_rank} must be from 1 to {most}, the width of the model")
  new = dataclasses.replace(
    cfg, layer_rank=layer_rank, share=share, num_hidden_groups=num_hidden_groups, unshared_ends=0
  )
  flat = dict(paths.flatten(params))
  total = kept = 0.0
  for path in [path for path in flat if path.startswith(("attention/", "ffn/"))]:
    part, leaf = path.split("/")[0], path.rsplit("/", 1)[-1]
    copies = np.array([copy_of(new, part, n, leaf) for n in range(N)])
    layers = flat[path]
    means = np.stack([layers[copies == copy].mean(axis=0) for copy in range(new.copies(part, leaf))])
    flat[path] = means if len(means) > 1 else means[0]
    if leaf != "kernel":
      continue
    lead = layers.shape[: 1 + (cfg.inner_group_num > 1)]
    inputs = cfg.intermediate_size if path == "ffn/down/kernel" else cfg.hidden_size
    u, s, v = np.linalg.svd((layers - means[copies]).reshape(*lead, inputs, -1), full_matrices=False)
    total, kept = total + np.sum(s**2), kept + np.sum(s[..., :layer_rank] ** 2)
    root = np.sqrt(s[..., :layer_rank])
    flat[path.replace("kernel", "a")] = u[..., :layer_rank] * root[..., None, :]
    flat[path.replace("kernel", "b")] = root[..., None] * v[..., :layer_rank, :]
  _keep_residual_scale(cfg, new, flat)
  return new, paths.unflatten(flat), float(kept / total) if total else 1.0


def _keep_residual_scale(cfg, new, flat):
  """Lets each layer of an arch=modern add what it did, although the scale of the residual is another now."""
  if cfg.arch != "modern":
    return
  for part, matrix in (("attention", "attention/output"), ("ffn", "ffn/down")):
    scaled = f"{matrix}/b" if new.layer_rank else None
    for path in filter(None, (f"{matrix}/kernel", scaled)):
      flat[path] = flat[path] * np.float32(residual_scale(cfg, part) / residual_scale(new, part))
