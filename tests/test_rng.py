"""Counter-based random numbers."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from albert_jax.data import rng


def test_numbers_depend_on_seed_name_and_number_alone():
  numbers = np.arange(1000)
  whole = rng.bits(rng.keys(7, "a", numbers), 5)
  parts = np.concatenate([rng.bits(rng.keys(7, "a", numbers[i : i + 10]), 9)[:, :5] for i in range(0, 1000, 10)])
  np.testing.assert_array_equal(whole, parts)
  for other in (rng.keys(8, "a", numbers), rng.keys(7, "b", numbers)):
    assert not np.isin(rng.bits(other, 5), whole).any()
  assert len(np.unique(whole)) == whole.size


def test_golden_numbers():
  # If these change, every run's data changes, so a resumed run would no longer continue the one that was killed.
  expected = [0xE124B2DEF329909A, 0xB8ACA324D0327D4B, 0xDCE9AF0EB068173F, 0xA4F2E5ABBFCE7160]
  assert rng.bits(rng.keys(0, "pairs", np.arange(2)), 2).ravel().tolist() == expected


def test_draws_are_uniform():
  random = rng.bits(rng.keys(0, "x", np.arange(20000)), 10)
  share = np.bincount(rng.below(random, 10).ravel(), minlength=10) / random.size
  np.testing.assert_allclose(share, 0.1, atol=0.004)
  np.testing.assert_allclose(rng.chance(random, 0.1).mean(axis=0), 0.1, atol=0.01)
  assert rng.chance(random, 1.0).all() and not rng.chance(random, 0.0).any()
  # neighbouring examples and neighbouring positions do not go together
  unit = (random >> np.uint64(11)) / 2.0**53
  assert abs(np.corrcoef(unit[:-1, 0], unit[1:, 0])[0, 1]) < 0.03
  assert abs(np.corrcoef(unit[:, 0], unit[:, 1])[0, 1]) < 0.03


@given(st.integers(1, 3000), st.integers(0, 2**32))
def test_a_permutation_hits_everything_once(size, seed):
  key = rng.keys(seed, "order", np.zeros(size, np.int64))
  assert sorted(rng.permute(np.arange(size), size, key).tolist()) == list(range(size))


def test_permutations_are_random():
  size, epochs = 50, 2000
  key = rng.keys(3, "order", np.repeat(np.arange(epochs), size))
  orders = rng.permute(np.tile(np.arange(size), epochs), size, key).reshape(epochs, size)
  counts = np.stack([np.bincount(orders[:, i], minlength=size) for i in range(size)])
  chi2 = ((counts - epochs / size) ** 2 / (epochs / size)).sum() / (size - 1) ** 2
  assert 0.9 < chi2 < 1.1, chi2
  follows = (np.diff(orders, axis=1) == 1).mean()  # neighbours do not stay neighbours
  assert abs(follows - 1 / size) < 0.003, follows
