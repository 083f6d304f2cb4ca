"""Mixes several datasets with given shares: returns the record of an example by the example's number.

Example numbers are divided into blocks. In each block a dataset has a fixed number of slots, in a random order. So
shares are exact, each dataset has its own shuffled epochs, and an example is located without the ones before it.
"""

from collections.abc import Sequence

import numpy as np

from albert_jax.data import rng
from albert_jax.errors import UserError

BLOCK = 4096


def block_slots(weights: str, sizes: Sequence[int]) -> np.ndarray:
  """Returns the number of slots of a block for each dataset.

  Args:
    weights: the shares with commas between, in any unit; '' for the sizes, so that all epochs are equally long.
    sizes: list of K ints, records in each dataset.

  Returns:
    int64 array [K], summing to BLOCK.

  Raises:
    UserError: the weights are not K positive numbers, or too unequal to be kept.
  """
  try:
    shares = np.array([float(x) for x in weights.split(",")] if weights else sizes, float)
  except ValueError:
    shares = np.zeros(0)
  if len(shares) != len(sizes) or not np.all(shares > 0) or not np.all(np.isfinite(shares)):
    raise UserError(
      f"data.weights={weights!r} must be {len(sizes)} positive numbers, one for each dataset, such as "
      f"--config.data.weights={','.join(['1'] * len(sizes))}"
    )
  exact = shares / shares.sum() * BLOCK
  result = np.floor(exact).astype(np.int64)
  result[np.argsort(result - exact, kind="stable")[: BLOCK - result.sum()]] += 1  # the largest remainders
  if not result.all():
    raise UserError(
      f"data.weights={weights or 'by size'} gives a dataset less than one example in {BLOCK}; expected shares of at "
      f"least {1 / BLOCK:.2%}: raise them with --config.data.weights=…, or leave that dataset out"
    )
  return result


def locate(numbers: np.ndarray, slots_of: np.ndarray, sizes: Sequence[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the records that training examples are made of.

  Args:
    numbers: int64 array [B], global example numbers.
    slots_of: int64 array [K], see `block_slots`.
    sizes: list of K ints, records in each dataset.
    seed: int.

  Returns:
    (dataset, index): int64 arrays [B], the number of the dataset and of the record in it.
  """
  if len(sizes) == 1:
    dataset_of, position = np.zeros(len(numbers), np.int64), numbers
  else:
    block = numbers // BLOCK
    place = rng.permute(numbers % BLOCK, BLOCK, rng.keys(seed, "mixture", block))
    ends = np.cumsum(slots_of)
    dataset_of = np.searchsorted(ends, place, side="right")
    position = block * slots_of[dataset_of] + place - (ends - slots_of)[dataset_of]
  index = np.empty(len(numbers), np.int64)
  for k, size in enumerate(sizes):
    in_k = dataset_of == k
    index[in_k] = rng.shuffled(position[in_k], size, seed, "order" if len(sizes) == 1 else f"order {k}")
  return dataset_of, index


def locate_in_order(positions: np.ndarray, sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
  """Returns (dataset, index) of positions in the concatenation of all datasets: int64 arrays [B]."""
  ends = np.cumsum(sizes)
  dataset_of = np.searchsorted(ends, positions, side="right")
  return dataset_of, positions - np.append(0, ends)[dataset_of]
