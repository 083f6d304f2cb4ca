"""LAMB and AdamW by hand in numpy; the schedule at the steps where forms differ."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from albert_jax.errors import UserError
from albert_jax.training import optimizer
from albert_jax.training.optimizer import OptimizerConfig

LEAD = {"w": {"kernel": 0, "bias": 0}, "norm": {"scale": 0}, "layers": {"kernel": 1}}


@pytest.fixture
def params():
  rng = np.random.default_rng(0)
  shapes = {"w": {"kernel": (3, 4), "bias": (4,)}, "norm": {"scale": (4,)}, "layers": {"kernel": (2, 3, 4)}}
  return jax.tree.map(
    lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes, is_leaf=lambda s: type(s) is tuple
  )


def steps(cfg, params, count=3):
  """The updates of `count` steps on fixed gradients, and the gradients."""
  tx, rng = optimizer.make(cfg, LEAD), np.random.default_rng(1)
  state, updates, grads = tx.init(params), [], []
  for _ in range(count):
    grads.append(jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params))
    update, state = tx.update(grads[-1], state, params)
    updates.append(update)
  return updates, grads


def by_hand(params, grads, *, lamb, textbook):
  """The update after all `grads`, for each array, by the formulas of lamb_optimizer.py and optimization.py."""
  norms = [np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(tree))) for tree in grads]

  def one(path, p):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    m = v = 0
    for tree, norm in zip(grads, norms, strict=True):
      g = np.asarray(dict(_flat(tree))[name], np.float64)
      g = g / max(1.0, norm)
      m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    if textbook:
      m, v = m / (1 - 0.9 ** len(grads)), v / (1 - 0.999 ** len(grads))
    update = m / (np.sqrt(v) + 1e-6)
    p = np.asarray(p, np.float64)
    if name.endswith("kernel"):
      update = update + 0.01 * p
      if lamb and name.startswith("layers"):
        return np.stack([u * np.linalg.norm(x) / np.linalg.norm(u) for u, x in zip(update, p, strict=True)])
      if lamb:
        update = update * np.linalg.norm(p) / np.linalg.norm(update)
    return update

  return jax.tree_util.tree_map_with_path(one, params)


def _flat(tree):
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


@pytest.mark.parametrize("name", ["lamb", "adamw"])
@pytest.mark.parametrize("textbook", [False, True])
def test_updates_are_those_of_the_formulas(name, textbook, params):
  updates, grads = steps(OptimizerConfig(name=name, textbook=textbook), params)
  expected = dict(_flat(by_hand(params, grads, lamb=name == "lamb", textbook=textbook)))
  for path, update in _flat(updates[-1]):
    np.testing.assert_allclose(update, expected[path], rtol=2e-5, atol=1e-6, err_msg=path)


def test_textbook_adamw_is_optax_adamw(params):
  updates, grads = steps(OptimizerConfig(name="adamw", textbook=True, clip_norm=1e9), params)
  mask = {"w": {"kernel": True, "bias": False}, "norm": {"scale": False}, "layers": {"kernel": True}}
  tx = optax.adamw(1.0, 0.9, 0.999, 1e-6, weight_decay=0.01, mask=mask)
  state = tx.init(params)
  for mine, g in zip(updates, grads, strict=True):
    theirs, state = tx.update(g, state, params)
    for (path, a), (_, b) in zip(_flat(mine), _flat(theirs), strict=True):
      np.testing.assert_allclose(a, -b, rtol=1e-5, atol=1e-6, err_msg=path)


def test_stacked_layers_have_a_trust_ratio_each(params):
  params["layers"]["kernel"] = params["layers"]["kernel"] * jnp.array([1.0, 100.0])[:, None, None]
  updates, _ = steps(OptimizerConfig(name="lamb"), params, 1)
  norms = [float(jnp.linalg.norm(u)) for u in updates[0]["layers"]["kernel"]]
  expected = [float(jnp.linalg.norm(p)) for p in params["layers"]["kernel"]]
  np.testing.assert_allclose(norms, expected, rtol=1e-5)


def test_a_parameter_that_is_all_zero_moves(params):
  params["w"]["kernel"] = jnp.zeros((3, 4))
  updates, _ = steps(OptimizerConfig(name="lamb"), params, 1)
  assert jnp.isfinite(updates[0]["w"]["kernel"]).all()
  assert updates[0]["w"]["kernel"].any()


def test_schedule_of_the_original_counts_decay_from_the_start():
  rate = optimizer.schedule(OptimizerConfig(learning_rate=2.0, warmup_steps=10), 100)
  np.testing.assert_allclose([rate(n) for n in (0, 5, 9, 10, 50, 100, 200)], [0, 1, 1.8, 1.8, 1, 0, 0], atol=1e-6)


def test_schedule_of_the_textbook_counts_decay_from_the_end_of_the_warm_up():
  rate = optimizer.schedule(OptimizerConfig(learning_rate=2.0, warmup_steps=10, textbook=True), 110)
  np.testing.assert_allclose([rate(n) for n in (0, 5, 10, 60, 110)], [0, 1, 2, 1, 0], atol=1e-6)


def test_schedule_with_another_power_and_without_warm_up():
  rate = optimizer.schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=0, decay_power=2.0), 10)
  np.testing.assert_allclose([rate(n) for n in (0, 5, 10)], [1, 0.25, 0], atol=1e-6)


def test_a_warm_up_longer_than_the_run_is_an_error():
  with pytest.raises(UserError, match="warmup_steps=100 must be below steps=100; try"):
    optimizer.schedule(OptimizerConfig(warmup_steps=100), 100)


def test_an_unknown_optimizer_is_an_error():
  with pytest.raises(UserError, match="use one of"):
    OptimizerConfig(name="adam")
