"""Our parameter tree against a flat table of named tensors, in both directions: what all foreign formats share.

A format says in one table how it names our parameters; the rest is here: which layers it has to store, layouts, and the
one error that lists everything that does not fit.
"""

import re
import sys
from dataclasses import dataclass

import jax
import numpy as np

from albert_jax import model, paths
from albert_jax.errors import UserError


@dataclass(frozen=True)
class Entry:
  """One tensor there, which is one slice of one parameter here.

  name: its name there. path: the parameter here. index: the slice, on the axes that count copies and inner groups.
  shape: of the slice here. there: shape of the tensor there. transposed: [out, in] there, [in, out] here.
  """

  name: str
  path: str
  index: tuple
  shape: tuple
  there: tuple
  transposed: bool


@dataclass(frozen=True)
class Rules:
  """How strictly a checkpoint is read.

  allow_missing: regular expressions of our parameter paths that may be absent; they are fresh then.
  allow_unused: regular expressions of names there that may be left over.
  keep_config: believe the config even where it is known to be wrong for the weights.
  say: called with a line for the user about each thing that was allowed or corrected.
  """

  allow_missing: tuple = ()
  allow_unused: tuple = ()
  keep_config: bool = False
  say: object = lambda line: print(line, file=sys.stderr)


def original_group(layer, layers, groups):
  """The group that the original runs at a layer (modeling.py, transformer_model)."""
  return int(layer / layers * groups)


def copy_of(cfg, part, layer, leaf="kernel"):
  """Which copy of a parameter a layer of ours uses; part and leaf as in AlbertConfig.copies."""
  copies = cfg.copies(part, leaf)
  return layer if copies == cfg.num_hidden_layers else cfg.group_of(layer) if copies > 1 else 0


def layers_there(cfg, group_of=original_group):
  """Which of our layers a format has to store when all it can share is whole groups.

  Args: group_of: (layer, layers, groups) -> group, as the format's reader counts.
  Returns: one layer for each of its groups: `num_hidden_groups` of them where ours and its grouping are the same, else
    all layers, each a group of its own.
  """
  N, G = cfg.num_hidden_layers, cfg.num_hidden_groups
  first = {}  # group there: the first layer that runs it
  for n in range(N):
    first.setdefault(group_of(n, N, G), n)
  parameters = [(part, leaf) for part in ("attention", "ffn") for leaf in ("kernel", "bias")]
  used = [[copy_of(cfg, part, n, leaf) for part, leaf in parameters] for n in range(N)]
  if len(first) == G and all(used[n] == used[first[group_of(n, N, G)]] for n in range(N)):
    return [first[g] for g in range(G)]
  return list(range(N))


def shapes(cfg, parts, heads):
  """{path: shape} of a model: the optional `parts` it has, and {head: {path: shape}} of tasks."""
  flat = {path: leaf.shape for path, leaf in paths.flatten(model.shapes(cfg, parts)).items()}
  return flat | {f"{head}/{path}": shape for head, leaves in heads.items() for path, shape in leaves.items()}


def shapes_of(params):
  """(parts, heads) of a parameter tree, as `shapes` wants them."""
  parts = tuple(part for part in model.OPTIONAL if part in params)
  own = {"embeddings", "projection", "attention", "ffn", *model.OPTIONAL}
  heads = {head: {p: np.shape(x) for p, x in paths.flatten(params[head]).items()} for head in params.keys() - own}
  return parts, dict(sorted(heads.items()))


def entries(cfg, shapes, names, suffix, free, *, layers, transposed):
  """Every tensor of a model in a format's names.

  Args:
    shapes: {our path: shape}.
    names: {our parameter or module: its name there}; `{G}` and `{I}` in a name are the group and the inner group.
    suffix: our path of a parameter whose module is in `names` -> what follows the module's name there.
    free: our path of a task head that the format does not know -> a name for it.
    layers: the layers that are stored, one a group (see `layers_there`).
    transposed: our path of a matrix that is in `names` -> whether it is [out, in] there.

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
        index = ()
        if "{G}" in name:
          index += (copy_of(cfg, part, layer, leaf),) if cfg.copies(part, leaf) > 1 else ()
          index += (i,) if cfg.inner_group_num > 1 else ()
        here = shape[len(index) :]
        there = _heads_joined(path, here)
        flip = known and len(there) == 2 and transposed(path)
        full = name.replace("{G}", str(g)).replace("{I}", str(i))
        result.append(Entry(full, path, index, here, there[::-1] if flip else there, flip))
  return result


def _heads_joined(path, shape):
  """The shape without a separate axis for the attention heads, which no other format has."""
  if re.match(r"attention/(query|key|value)/", path):
    return (*shape[:-2], shape[-2] * shape[-1])
  return (shape[0] * shape[1], shape[2]) if path == "attention/output/kernel" else shape


def to_there(table, params):
  """A format's tensors, {name: float32 array}, out of our parameters.

  Raises: UserError: the parameters do not fit the config, or hold NaN or infinity (all are listed).
  """
  flat = {path: np.asarray(value, np.float32) for path, value in paths.flatten(params).items()}
  wanted = _full_shapes(table)
  problems = [f"not part of this model: {path}" for path in flat if path not in wanted]
  for path, shape in wanted.items():
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
    tensor = value.reshape(entry.there[::-1]).T if entry.transposed else value.reshape(entry.there)
    tensors[entry.name] = np.ascontiguousarray(tensor)
  return tensors


def to_here(where, cfg, table, tensors, rules=None):
  """Our parameters, a nested dict of float32 arrays, out of a format's tensors.

  Args: where: begins the message of an error. rules: Rules.
  Raises: UserError: listing each tensor that is missing, not known, of another shape or not finite.
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
        'elsewhere?); to load them as layers of their own, remove "albert_jax" from the config'
      )
    flat[entry.path][entry.index] = value
    filled.add((entry.path, entry.index))
  return paths.unflatten(flat)


def _full_shapes(table):
  """{path: shape of the whole parameter, all copies and inner groups together}."""
  lead, shape = {}, {}
  for entry in table:
    lead[entry.path] = tuple(max(a, i + 1) for a, i in zip(lead.get(entry.path, entry.index), entry.index, strict=True))
    shape[entry.path] = entry.shape
  return {path: (*lead[path], *shape[path]) for path in lead}


def _check(where, table, tensors, rules):
  """Returns the paths that are allowed to be missing and are; see `to_here`."""
  wanted = {entry.name: entry for entry in table}
  problems, absent = [], set()
  for name, entry in wanted.items():
    if name not in tensors:
      if any(re.search(pattern, entry.path) for pattern in rules.allow_missing):
        absent.add(entry.path)
      else:
        problems.append(f"missing: {name} {list(entry.there)} (here: {entry.path})")
  unused = [name for name in tensors if name not in wanted]
  left = [name for name in unused if not any(re.search(pattern, name) for pattern in rules.allow_unused)]
  problems += [f"not known: {name} {list(tensors[name].shape)}" for name in left]
  for name in tensors.keys() - set(unused):
    tensor, shape = tensors[name], wanted[name].there
    if tensor.shape != shape:
      problems.append(f"other shape: {name} is {list(tensor.shape)}, its config says {list(shape)}")
    elif not np.isfinite(tensor).all():
      problems.append(f"not finite: {name} holds NaN or infinity")
  if problems:
    listed = "\n  ".join(problems)
    raise UserError(
      f"{where} does not fit its config:\n  {listed}\n"
      "allow_missing=PATTERN lets parameters be fresh, allow_unused=PATTERN lets tensors be left out"
    )
  if absent:
    rules.say(f"{where}: not there, so fresh: {', '.join(sorted(absent))}")
  if unused:
    rules.say(f"{where}: there, but not used: {', '.join(unused)}")
  return absent
