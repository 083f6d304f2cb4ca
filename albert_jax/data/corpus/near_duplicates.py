"""Finds documents that nearly repeat an earlier one, by comparing small sketches of them.

A document is the set of its runs of five tokens. Its sketch has the smallest of their hashes. Two sketches give an
estimate of the Jaccard index of the sets (Broder's bottom-k sketch). Near duplicates almost always share one of the
smallest hashes, so only such documents are compared.
"""

import numpy as np

RUN = 5  # tokens
SKETCH = 64  # hashes of a sketch; the error of an index of 0.8 is about 0.05
_KEYS = 4  # the smallest hashes, which select candidates
_NEIGHBOURS = 8  # the most earlier documents with the same key to compare with
_NONE = np.uint32(0xFFFFFFFF)


def sketch(ids: np.ndarray) -> np.ndarray:
  """Returns the sketch of a document.

  Args:
    ids: int array [T], its tokens.

  Returns:
    uint32 array [SKETCH], ascending; filled up with 0xFFFFFFFF where the document has fewer runs.
  """
  x = ids.astype(np.uint64)
  runs = max(1, len(x) - RUN + 1)
  value = np.zeros(runs, np.uint64)
  for i in range(min(RUN, len(x))):
    value = (value + x[i : i + runs] + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
    value ^= value >> np.uint64(29)
  small = (value >> np.uint64(32)).astype(np.uint32)
  if len(small) > 4 * SKETCH:  # repeated runs may push the number of different ones below SKETCH, hence the 4
    small = np.partition(small, 4 * SKETCH)[: 4 * SKETCH]
  small = np.unique(small)[:SKETCH]
  return np.append(small, np.full(SKETCH - len(small), _NONE))


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Returns the estimated Jaccard index of pairs of sketches: uint32 arrays [n, SKETCH] to float array [n]."""
  both = np.sort(np.concatenate([a, b], axis=1), axis=1)
  is_new = np.concatenate([np.ones((len(a), 1), bool), both[:, 1:] != both[:, :-1]], axis=1) & (both != _NONE)
  is_common = np.concatenate([both[:, 1:] == both[:, :-1], np.zeros((len(a), 1), bool)], axis=1) & (both != _NONE)
  is_counted = np.cumsum(is_new, axis=1) <= SKETCH  # the smallest hashes of the union
  return (is_common & is_counted).sum(axis=1) / np.maximum(1, (is_new & is_counted).sum(axis=1))


def find(sketches: np.ndarray, is_kept: np.ndarray, threshold: float) -> np.ndarray:
  """Finds documents that nearly repeat one that comes earlier in the corpus.

  Args:
    sketches: uint32 array [n, SKETCH].
    is_kept: bool array [n], documents to look at.
    threshold: float, the similarity from which a document counts as a repetition.

  Returns:
    bool array [n].
  """
  documents = np.flatnonzero(is_kept)
  key = sketches[documents, :_KEYS].ravel()
  owner = np.repeat(documents, _KEYS)
  order = np.lexsort((owner, key))
  key, owner = key[order], owner[order]
  repeats = np.zeros(len(sketches), bool)
  for distance in range(1, _NEIGHBOURS + 1):
    same = np.flatnonzero((key[distance:] == key[:-distance]) & (key[distance:] != _NONE))
    earlier, later = owner[same], owner[same + distance]
    for i in range(0, len(same), 65536):
      part = slice(i, i + 65536)
      is_near = similarity(sketches[earlier[part]], sketches[later[part]]) >= threshold
      repeats[later[part][is_near]] = True
  return repeats
