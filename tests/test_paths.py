import pytest

from albert_jax import paths
from albert_jax.errors import UserError

TREE = {"a": {"kernel": 1, "bias": 2}, "b": {"norm": {"scale": 3}}}


def test_names_and_back():
  assert paths.names(TREE) == {"a": {"kernel": "a/kernel", "bias": "a/bias"}, "b": {"norm": {"scale": "b/norm/scale"}}}
  assert paths.unflatten(paths.flatten(TREE)) == TREE


def test_the_first_rule_that_matches_wins():
  rules = ((r"norm/", "n"), (r"bias$", "b"), (".*", "rest"))
  assert paths.first_match(rules, TREE) == {"a": {"kernel": "rest", "bias": "b"}, "b": {"norm": {"scale": "n"}}}


def test_what_no_rule_matches_is_an_error():
  with pytest.raises(UserError, match="no rule matches the parameter 'a/kernel'"):
    paths.first_match(((r"norm/", 0), (r"bias$", 0)), TREE)


def test_a_rule_that_matches_nothing_is_an_error():
  with pytest.raises(UserError, match=r"match no parameter: \['kernal'\]"):
    paths.first_match((("kernal", 0), (".*", 1)), TREE)
