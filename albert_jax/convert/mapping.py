"""Converts between our parameter tree and the flat tensors of other formats.

Each format has a table with its names of our parameters. The common part is in this module: which layers to store,
layouts, and an error that lists every tensor that does not fit.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np

from albert_jax import model, paths
from albert_jax.errors import UserError
from albert_jax.model import AlbertConfig
from albert_jax.model.config import LOW_RANK
from albert_jax.types import Params

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
  """One tensor of a file, which is a slice of one of our parameters.

  Attributes:
    name: the tensor's name in the file.
    path: the path of our parameter.
    index: the slice, on the axes that count copies and inner groups.
    shape: the shape of the slice.
    file_shape: the shape of the tensor in the file.
    transposed: whether the file has [out, in]; ours is [in, out].
  """

  name: str
  path: str
  index: tuple
  shape: tuple
  file_shape: tuple
  transposed: bool


@dataclass(frozen=True)
class Rules:
  """How strictly a checkpoint is read.

  Attributes:
    allow_missing: regular expressions of our parameter paths that may be absent; such parameters are fresh.
    allow_unused: regular expressions of tensor names in the file that may stay unused.
    keep_config: keep the config's values even if they are known to be wrong for the weights.
    report: called with a line for the user for each exception that was allowed or corrected.
  """

  allow_missing: tuple = ()
  allow_unused: tuple = ()
  keep_config: bool = False
  report: Callable[[str], None] = log.warning


def original_group(layer: int, layers: int, groups: int) -> int:
  """Returns the group that the original runs at a layer (modeling.py, transformer_model)."""
  return int(layer / layers * groups)


def copy_of(cfg: AlbertConfig, part: str, layer: int, leaf: str = "kernel") -> int:
  """Returns which copy of a parameter a layer of ours uses; part and leaf as in AlbertConfig.copies."""
  copies = cfg.copies(part, leaf)
  return layer if copies == cfg.num_hidden_layers else cfg.group_of(layer) if copies > 1 else 0


def is_ours(cfg: AlbertConfig) -> bool:
  """Returns whether a model has parts that no other library has."""
  return bool(cfg.layer_rank) or cfg.arch == "modern"


def refuse_ours(cfg: AlbertConfig, target: str) -> None:
  """Refuses a model with low-rank differences or arch=modern for a target that cannot express them.

  Raises:
    UserError: the model has them.
  """
  if cfg.arch == "modern":
    raise UserError(
      f"arch=modern: {target} has no rotary positions and no local attention; keep it as albert_jax's directory, or "
      "write ONNX and StableHLO with albert-jax export"
    )
  if cfg.layer_rank:
    raise UserError(
      f"layer_rank={cfg.layer_rank}: {target} has no low-rank differences between layers; first add them to matrices "
      "of each layer, with albert-jax convert --checkpoint=… --out=… --share=none"
    )


def stored_layers(cfg: AlbertConfig, group_of: Callable[[int, int, int], int] = original_group) -> list[int]:
  """Returns the layers that a format has to store if it can only share whole groups.

  Args:
    group_of: (layer, layers, groups) -> group, as the readers of the format compute it.

  Returns:
    One layer for each group of the file: `num_hidden_groups` layers if the format groups layers as we do, else all
      layers, each as its own group.
  """
  N, G = cfg.num_hidden_layers, cfg.groups
  first = {}  # {group in the file: the first layer that runs it}
  for n in range(N):
    first.setdefault(group_of(n, N, G), n)
  leaves = ("kernel", "bias", *(LOW_RANK if cfg.layer_rank else ()))
  parameters = [(part, leaf) for part in ("attention", "ffn") for leaf in leaves]
  used = [[copy_of(cfg, part, n, leaf) for part, leaf in parameters] for n in range(N)]
  if len(first) == G and all(used[n] == used[first[group_of(n, N, G)]] for n in range(N)):
    return [first[g] for g in range(G)]
  return list(range(N))


def shapes(
  cfg: AlbertConfig, parts: tuple[str, ...], heads: dict[str, dict[str, tuple[int, ...]]]
) -> dict[str, tuple[int, ...]]:
  """Returns {path: shape} of a model: the optional `parts` it has, and {head: {path: shape}} of tasks."""
  flat = {path: leaf.shape for path, leaf in paths.flatten(model.shapes(cfg, parts)).items()}
  return flat | {f"{head}/{path}": shape for head, leaves in heads.items() for path, shape in leaves.items()}


def shapes_of(params: Params) -> tuple[tuple[str, ...], dict[str, dict[str, tuple[int, ...]]]]:
  """Returns (parts, heads) of a parameter tree, the arguments of `shapes`."""
  parts = tuple(part for part in model.OPTIONAL if part in params)
  encoder_parts = {"embeddings", "projection", "attention", "ffn", "norm", *model.OPTIONAL}
  heads = {
    head: {p: np.shape(x) for p, x in paths.flatten(params[head]).items()} for head in params.keys() - encoder_parts
  }
  return parts, dict(sorted(heads.items()))


def entries(
  cfg: AlbertConfig,
  shapes: dict[str, tuple[int, ...]],
  names: dict[str, str],
  suffix: Callable[[str], str],
  free: Callable[[str], str],
  *,
  layers: list[int],
  transposed: Callable[[str], bool],
) -> list[Entry]:
  """Returns the entries of all tensors of a model, in a format's names.

  Args:
    shapes: {our path: shape}.
    names: {our parameter or module: its name in the file}; `{G}` and `{I}` are the group and the inner group.
    suffix: our path of a parameter whose module is in `names` -> the suffix after the module's name in the file.
    free: our path of a task head that the format does not have -> a name for it.
    layers: the layers that are stored, one a group (see `stored_layers`).
    transposed: our path of a matrix that is in `names` -> whether the file has it as [out, in].

  Returns:
    list of Entry.
  """
  result = []
  for path, shape in shapes.items():
    part, leaf, module = path.split("/")[0], path.rsplit("/", 1)[-1], path.rsplit("/", 1)[0]
    known = path in names or module in names
    name = names[path] if path in names else names[module] + suffix(path) if known else free(path)
    for g, layer in enumerate(layers if "{G}" in name else [0]):
      for i in range(cfg.inner_group_num if "{I}" in name else 1):
        index: tuple[int, ...] = ()
        if "{G}" in name:
          index += (copy_of(cfg, part, layer, leaf),) if cfg.copies(part, leaf) > 1 else ()
          index += (i,) if cfg.inner_group_num > 1 else ()
        own_shape = shape[len(index) :]
        file_shape = _heads_joined(path, own_shape)
        flip = known and len(file_shape) == 2 and transposed(path)
        full = name.replace("{G}", str(g)).replace("{I}", str(i))
        result.append(Entry(full, path, index, own_shape, file_shape[::-1] if flip else file_shape, flip))
  return result


def _heads_joined(path, shape):
  """Returns the shape without a separate axis for the attention heads, which no other format has."""
  if path.endswith(tuple(f"/{leaf}" for leaf in LOW_RANK)):
    return shape
  if re.match(r"attention/(query|key|value)/", path):
    return (*shape[:-2], shape[-2] * shape[-1])
  return (shape[0] * shape[1], shape[2]) if path == "attention/output/kernel" else shape


def to_tensors(table: list[Entry], params: Params) -> dict[str, np.ndarray]:
  """Converts our parameters to a format's tensors, {name: float32 array}.

  Raises:
    UserError: the parameters do not fit the config, or hold NaN or infinity (all are listed).
  """
  flat = {path: np.asarray(value, np.float32) for path, value in paths.flatten(params).items()}
  expected = _full_shapes(table)
  problems = [f"not part of this model: {path}" for path in flat if path not in expected]
  for path, shape in expected.items():
    if path not in flat:
      problems.append(f"missing: {path} {list(shape)}")
    elif flat[path].shape != shape:
      problems.append(f"other shape: {path} is {list(flat[path].shape)}, the config says {list(shape)}")
    elif not np.isfinite(flat[path]).all():
      problems.append(f"not finite: {path} holds NaN or infinity")
  if problems:
    listed = "\n  ".join(problems)
    raise UserError(f"nothing was written; the parameters do not fit the config:\n  {listed}")
  tensors = {}
  for entry in table:
    value = flat[entry.path][entry.index]
    tensor = value.reshape(entry.file_shape[::-1]).T if entry.transposed else value.reshape(entry.file_shape)
    tensors[entry.name] = np.ascontiguousarray(tensor)
  return tensors


def to_params(
  where: str, cfg: AlbertConfig, table: list[Entry], tensors: dict[str, np.ndarray], rules: Rules | None = None
) -> Params:
  """Converts a format's tensors to our parameters, a nested dict of float32 arrays.

  Args:
    where: the name of the checkpoint in errors.
    rules: Rules.

  Raises:
    UserError: a tensor is missing, unknown, of another shape or not finite (all are listed).
  """
  rules = rules or Rules()
  absent = _check(where, table, tensors, rules)
  fresh = paths.flatten(model.init(cfg, jax.random.key(0))) if absent else {}
  flat = {path: np.array(fresh.get(path, np.zeros(shape)), np.float32) for path, shape in _full_shapes(table).items()}
  filled = set()
  for entry in table:
    if entry.name not in tensors:
      continue
    value = tensors[entry.name]
    value = (value.T if entry.transposed else value).reshape(entry.shape)
    if (entry.path, entry.index) in filled and not np.array_equal(flat[entry.path][entry.index], value):
      raise UserError(
        f"{where}: {entry.name} belongs to layers that share their weights, but the layers differ (trained further "
        'by another program?); to load them as separate layers, remove "albert_jax" from the config'
      )
    flat[entry.path][entry.index] = value
    filled.add((entry.path, entry.index))
  return paths.unflatten(flat)


def _full_shapes(table):
  """Returns {path: shape of the whole parameter, with all copies and inner groups}."""
  lead, shape = {}, {}
  for entry in table:
    lead[entry.path] = tuple(max(a, i + 1) for a, i in zip(lead.get(entry.path, entry.index), entry.index, strict=True))
    shape[entry.path] = entry.shape
  return {path: (*lead[path], *shape[path]) for path in lead}


def _check(where, table, tensors, rules):
  """Returns the paths that are missing and may be; see `to_params`."""
  entries_of = {entry.name: entry for entry in table}
  problems, absent = [], set()
  for name, entry in entries_of.items():
    if name not in tensors:
      if any(re.search(pattern, entry.path) for pattern in rules.allow_missing):
        absent.add(entry.path)
      else:
        problems.append(f"missing: {name} {list(entry.file_shape)} (here: {entry.path})")
  unused = [name for name in tensors if name not in entries_of]
  left = [name for name in unused if not any(re.search(pattern, name) for pattern in rules.allow_unused)]
  problems += [f"not known: {name} {list(tensors[name].shape)}" for name in left]
  for name in tensors.keys() - set(unused):
    tensor, shape = tensors[name], entries_of[name].file_shape
    if tensor.shape != shape:
      problems.append(f"other shape: {name} is {list(tensor.shape)}, its config says {list(shape)}")
    elif not np.isfinite(tensor).all():
      problems.append(f"not finite: {name} holds NaN or infinity")
  if problems:
    listed = "\n  ".join(problems)
    raise UserError(
      f"{where} does not fit its config:\n  {listed}\n"
      "allow_missing=PATTERN permits fresh parameters, allow_unused=PATTERN permits unused tensors"
    )
  if absent:
    rules.report(f"{where}: not there, so fresh: {', '.join(sorted(absent))}")
  if unused:
    rules.report(f"{where}: there, but not used: {', '.join(unused)}")
  return absent
