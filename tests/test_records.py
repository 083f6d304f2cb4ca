"""The packed record format."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from albert_jax.data.records import document_id, pack, ragged, unpack, word_starts
from albert_jax.errors import UserError


@st.composite
def segments(draw):
  tokens = draw(st.integers(1, 40))
  ids = draw(st.lists(st.integers(0, 65535), min_size=tokens, max_size=tokens))
  starts = sorted({0, *draw(st.lists(st.integers(0, tokens - 1)))})
  words = draw(st.lists(st.booleans(), min_size=tokens, max_size=tokens))
  return ids, starts, words, draw(st.integers(0, 2**64 - 1))


@given(st.lists(segments(), min_size=1, max_size=5), st.sampled_from([np.uint16, np.uint32]))
def test_a_batch_reads_back_what_was_packed(batch, dtype):
  packed = [pack(np.array(i, dtype), np.array(s, np.uint16), np.array(w, bool), d) for i, s, w, d in batch]
  assert all(len(p) % 8 == 0 for p in packed)
  records = unpack(packed)
  for r, (ids, starts, words, document) in enumerate(batch):
    assert records.ids[records.id_base[r] :][: len(ids)].tolist() == ids
    assert records.sentence_starts[records.sentence_base[r] :][: records.sentences[r]].tolist() == starts
    bits = np.unpackbits(records.data[records.word_base[r] :], bitorder="little")[: records.tokens[r]]
    assert bits.astype(bool).tolist() == words
    assert records.document[r] == document


def test_other_bytes_are_refused():
  with pytest.raises(UserError, match="albert-jax prepare"):
    unpack([b"something else"])
  with pytest.raises(UserError, match="albert-jax prepare"):
    unpack([b"sixteen bytes....and eight more "])


def test_ragged():
  assert ragged(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]


def test_word_starts_follow_the_original():
  pieces = ["<pad>", "▁the", "ing", "'s", "\u2019", ",", "-a", "é", "12", "▁", "the", "."]
  expected = [True, True, False, True, True, True, False, True, True, True, False, True]
  assert word_starts(pieces).tolist() == expected
  assert word_starts(["[CLS]", "play", "##ing", "中"]).tolist() == [True, True, False, True]


def test_document_ids_are_stable():
  assert document_id(["One.", "Größe"]) == document_id(["One.", "Größe"]) != document_id(["One. Größe"])
  assert document_id(["One."]) == 0xB33763C62B8EB441
