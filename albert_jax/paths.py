"""Paths of a tree's leaves, and rules that match them; used by sharding, weight decay and freezing."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from albert_jax.errors import UserError


def names(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> Any:
  """Replaces each leaf of a tree by its path: {"a": {"b": x}} -> {"a": {"b": "a/b"}}."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: jax.tree_util.keystr(path, simple=True, separator="/"), tree, is_leaf=is_leaf
  )


def flatten(tree: Any) -> dict:
  """Flattens a nested tree to {"a/b": leaf}, in the tree's order."""
  return dict(zip(jax.tree.leaves(names(tree)), jax.tree.leaves(tree), strict=True))


def unflatten(flat: dict) -> dict:
  """Rebuilds the nested dict of {"a/b": leaf}; the inverse of `flatten` for nested dicts."""
  tree = {}
  for path, leaf in flat.items():
    *parents, last = path.split("/")
    node = tree
    for name in parents:
      node = node.setdefault(name, {})
    node[last] = leaf
  return tree


def first_match(rules: Sequence[tuple[str, Any]], tree: Any) -> Any:
  """Gives each leaf the value of the first rule whose pattern is found in its path.

  Args:
    rules: ordered (regular expression, value) pairs.
    tree: any tree.

  Returns:
    A tree of the same structure with a value at each leaf.

  Raises:
    UserError: no rule matches a leaf, or a rule matches no leaf (most likely a typo).
  """
  paths = names(tree)
  used = set()

  def value_of(path):
    for i, (pattern, value) in enumerate(rules):
      if re.search(pattern, path):
        used.add(i)
        return value
    raise UserError(f"no rule matches the parameter {path!r}; add one to {[pattern for pattern, _ in rules]}")

  values = [value_of(path) for path in jax.tree.leaves(paths)]
  idle = [pattern for i, (pattern, _) in enumerate(rules) if i not in used]
  if idle and not all(pattern == ".*" for pattern in idle):
    listed = ", ".join(jax.tree.leaves(paths))
    raise UserError(f"these rules match no parameter: {idle}; the parameters are {listed}")
  return jax.tree.unflatten(jax.tree.structure(paths), values)
