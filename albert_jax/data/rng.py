"""Random numbers as a pure function of (seed, purpose, example number, position).

The numbers of a stateful generator would depend on the order in which examples are made. These numbers are hashes of
counters (splitmix64), whole arrays at a time, so an example has the same numbers in any batch, on any host, in any
worker, and after any restart.
"""

import hashlib

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's increment, 2**64 / golden ratio
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))


def _mix(x):
  """splitmix64's finaliser, a bijection of 64 bits, in place on a uint64 array."""
  for shift, factor in _MIX:
    x ^= x >> np.uint64(shift)
    if factor != 1:
      x *= np.uint64(factor)
  return x


def keys(seed: int, name: str, numbers: np.ndarray) -> np.ndarray:
  """Returns a key for each example.

  Args:
    seed: 0 or more.
    name: the purpose of the numbers; different names give independent numbers.
    numbers: int array [B], the global example numbers.

  Returns:
    uint64 array [B].
  """
  salt = int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")
  return _mix(_mix(np.asarray(numbers).astype(np.uint64) * _STEP + np.uint64(salt)))


def bits(keys_B: np.ndarray, count: int, first: int = 0) -> np.ndarray:
  """Returns independent random uint64 [B, count]: numbers `first` to `first + count` of each key."""
  return _mix(keys_B[:, None] + np.arange(first + 1, first + count + 1, dtype=np.uint64) * _STEP)


def below(random: np.ndarray, bound: int | np.ndarray) -> np.ndarray:
  """Converts random uint64 to int64 in [0, bound), by their upper halves; `bound` ≥ 1 broadcasts, below 2**32."""
  return (((random >> np.uint64(32)) * np.asarray(bound).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)


def chance(random: np.ndarray, probability: float) -> np.ndarray:
  """Converts random uint64 to bool, True with a probability (to 2**-32)."""
  return (random >> np.uint64(32)) < np.uint64(round(probability * 2**32))


def permute(positions: np.ndarray, size: int | np.ndarray, keys_B: np.ndarray) -> np.ndarray:
  """Returns a random permutation of range(size) for each key, by random access and without memory.

  Args:
    positions: int array [B] in [0, size).
    size: int ≥ 1, or int array [B].
    keys_B: uint64 array [B]; rows with the same key and size follow the same permutation.

  Returns:
    int64 array [B] in [0, size).
  """
  size = np.broadcast_to(np.asarray(size, np.uint64), len(keys_B))
  width = np.maximum(2, np.frexp((size - np.uint64(1)).astype(np.float64))[1]).astype(np.uint64)  # bits of size - 1
  mask = (np.uint64(1) << width) - np.uint64(1)
  shift = (width + np.uint64(1)) // np.uint64(2)
  rounds = bits(keys_B, 8)
  x = np.array(positions, np.uint64)
  outside = np.arange(len(x))
  # Adding, multiplying by an odd number and xor-shifting are bijections of `width` bits; values that fall outside the
  # range are mapped again, which keeps the whole mapping a bijection.
  while len(outside):
    y, r, m, s = x[outside], rounds[outside], mask[outside], shift[outside]
    for i in range(0, 8, 2):
      y = ((y + r[:, i]) * (r[:, i + 1] | np.uint64(1))) & m
      y ^= y >> s
    x[outside] = y
    outside = outside[y >= size[outside]]
  return x.astype(np.int64)


def shuffled(positions: np.ndarray, size: int, seed: int, name: str = "order") -> np.ndarray:
  """Returns the records at positions of an endless stream that passes over `size` records, each epoch in another order.

  Args:
    positions: int array [B], positions in the stream.
    size: the number of records, 1 or more.
    seed: 0 or more.
    name: the purpose of the order; different names give independent orders.

  Returns:
    int64 array [B] in [0, size); each epoch has every record once.
  """
  epoch = positions // size
  return permute(positions % size, size, keys(seed, name, epoch))
