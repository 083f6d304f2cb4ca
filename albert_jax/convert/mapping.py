"""Our parameter tree against a flat table of named tensors, in both directions: what all foreign formats share.

A format says in one table how it names our parameters; the rest is here: which layers it has to store, layouts, and the
one error that lists everything that does not fit.
"""

import re
from dataclasses import dataclass

import numpy as np

from albert_jax import model, paths
from albert_jax.errors import UserError

# Task heads, which live in the parameter tree beside the model's own parts: {head: (D, C) -> {path: shape}}. D is the
# hidden size; the number of classes C is known only from the tensors.
HEADS = {
  "classifier": lambda D, C: {"kernel": (D, C), "bias": (C,)},  # of a sequence, of each token, or of choices (C = 1)
  "span": lambda D, C: {"kernel": (D, C), "bias": (C,)},  # start and end of an answer: C = 2
}


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


def original_group(layer, layers, groups):
  """The group that the original runs at a layer (modeling.py, transformer_model)."""
  return int(layer / layers * groups)


def copy_of(cfg, part, layer):
  """Which copy of `part` ("attention" or "ffn") a layer of ours uses."""
  copies = cfg.copies(part)
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
  used = [(copy_of(cfg, "attention", n), copy_of(cfg, "ffn", n)) for n in range(N)]
  if len(first) == G and all(used[n] == used[first[group_of(n, N, G)]] for n in range(N)):
    return [first[g] for g in range(G)]
  return list(range(N))


def entries(cfg, names, suffix, *, parts=model.OPTIONAL, heads=None, layers=None, transposed=lambda path: False):
  """Every tensor of a model in a format's names.

  Args:
    names: {our parameter or module: its name there}; `{G}` and `{I}` in a name are the group and the inner group.
    suffix: our path of a parameter whose module is in `names` -> what follows the module's name there.
    parts: which of the optional parts the model has. heads: {task head: number of classes}.
    layers: the layers that are stored, one a group (see `layers_there`).
    transposed: our path of a matrix -> whether it is [out, in] there.

  Returns:
    list of Entry.
  """
  layers = layers_there(cfg) if layers is None else layers
  shapes = {path: leaf.shape for path, leaf in paths.flatten(model.shapes(cfg, parts)).items()}
  for head, classes in (heads or {}).items():
    shapes |= {f"{head}/{path}": shape for path, shape in HEADS[head](cfg.hidden_size, classes).items()}
  result = []
  for path, shape in shapes.items():
    name = names[path] if path in names else names[path.rsplit("/", 1)[0]] + suffix(path)
    part = path.split("/")[0]
    for g, layer in enumerate(layers if "{G}" in name else [0]):
      for i in range(cfg.inner_group_num if "{I}" in name else 1):
        index = ()
        if "{G}" in name:
          index += (copy_of(cfg, part, layer),) if cfg.copies(part) > 1 else ()
          index += (i,) if cfg.inner_group_num > 1 else ()
        here = shape[len(index) :]
        there = _heads_joined(path, here)
        flip = len(there) == 2 and transposed(path)
        full = name.replace("{G}", str(g)).replace("{I}", str(i))
        result.append(Entry(full, path, index, here, there[::-1] if flip else there, flip))
  return result


def _heads_joined(path, shape):
  """The shape without a separate axis for the attention heads, which no other format has."""
  if re.match(r"attention/(query|key|value)/", path):
    return (*shape[:-2], shape[-2] * shape[-1])
  return (shape[0] * shape[1], shape[2]) if path == "attention/output/kernel" else shape


def to_there(table, params):
  """A format's tensors, {name: float32 array}, out of our parameters."""
  flat = paths.flatten(params)
  left = sorted(flat.keys() - {entry.path for entry in table})
  if left:
    raise UserError(f"these parameters have no name in this format: {', '.join(left)}")
  tensors = {}
  for entry in table:
    value = np.asarray(flat[entry.path], np.float32)[entry.index]
    tensor = value.reshape(entry.there[::-1]).T if entry.transposed else value.reshape(entry.there)
    tensors[entry.name] = np.ascontiguousarray(tensor)
  return tensors


def to_here(where, table, tensors):
  """Our parameters, a nested dict of float32 arrays, out of a format's tensors. See `check` for the errors."""
  check(where, table, tensors)
  sizes = {}
  for entry in table:
    sizes[entry.path] = np.maximum(sizes.get(entry.path, 0), [i + 1 for i in entry.index]).astype(int)
  flat, filled = {}, set()
  for entry in table:
    value = tensors[entry.name]
    value = (value.T if entry.transposed else value).reshape(entry.shape)
    if entry.path not in flat:
      flat[entry.path] = np.empty((*sizes[entry.path], *entry.shape), np.float32)
    if (entry.path, entry.index) in filled and not np.array_equal(flat[entry.path][entry.index], value):
      raise UserError(
        f"{where}: {entry.name} belongs to layers that share their weights, but the layers differ (trained further "
        'elsewhere?); to load them as layers of their own, remove "albert_jax" from the config.json'
      )
    flat[entry.path][entry.index] = value
    filled.add((entry.path, entry.index))
  return paths.unflatten(flat)


def check(where, table, tensors):
  """One error for everything that does not fit.

  Raises:
    UserError: listing each tensor that is missing, not known, of another shape or not finite. `where` begins it.
  """
  wanted = {entry.name: entry.there for entry in table}
  problems = [f"missing: {name} {list(shape)}" for name, shape in wanted.items() if name not in tensors]
  for name, tensor in tensors.items():
    if name not in wanted:
      problems.append(f"not known: {name} {list(tensor.shape)}")
    elif tensor.shape != wanted[name]:
      problems.append(f"other shape: {name} is {list(tensor.shape)}, its config says {list(wanted[name])}")
    elif not np.isfinite(tensor).all():
      problems.append(f"not finite: {name} holds NaN or infinity")
  if problems:
    listed = "\n  ".join(problems)
    raise UserError(f"{where} does not fit its config:\n  {listed}")
