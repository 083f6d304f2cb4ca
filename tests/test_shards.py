"""Which documents are kept, and where they go."""

import numpy as np

from albert_jax.data import records
from albert_jax.data.corpus import shards


def test_documents_are_split_by_their_own_text():
  documents = np.array([records.document_id([str(i)]) for i in range(5000)], np.uint64)
  is_kept, is_validation = shards.split_documents(documents, 0.05)
  assert is_kept.all() and abs(is_validation.mean() - 0.05) < 0.01
  # more documents do not move those that were there
  np.testing.assert_array_equal(shards.split_documents(documents[:3000], 0.05)[1], is_validation[:3000])
  for fraction in (1e-9, 1 - 1e-9):  # no split is left empty
    few = shards.split_documents(documents[:3], fraction)[1]
    assert 1 <= few.sum() <= 2
  assert not shards.split_documents(documents, 0.0)[1].any()
