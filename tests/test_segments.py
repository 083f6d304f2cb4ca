"""From documents to segments of tokens."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from albert_jax.data.corpus import segments
from albert_jax.data.tokenizer import Tokenizer


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 40))
def test_segments_are_whole_sentences(lengths, limit):
  bounds = segments.segment_bounds(lengths, limit)
  assert all(0 < sum(segment) <= limit and all(segment) for segment in bounds)
  cut = [part for n in lengths for part in [limit] * ((n - 1) // limit) + [(n - 1) % limit + 1]]
  assert [n for segment in bounds for n in segment] == cut
  # no sentence that would have fitted was put off
  for segment, following in itertools.pairwise(bounds):
    assert sum(segment) + following[0] > limit


@pytest.mark.realdata
def test_encoding_many_sentences_equals_the_tokenizer(real_data):
  spm = real_data / "vocab/albert_en_30k/spiece.model"
  tokenizer = Tokenizer(spm)
  encoder = segments.Encoder(tokenizer, segments.Settings())
  text = (real_data / "pretrain/wiki_en/wiki_en_03.txt").read_text("utf-8")[:600_000]
  odd = [
    "In 2010, and 92000, or 3,000, it was.",
    "a \u0301 b",
    "\u00a8 x",
    "\u2581 y\u2581z",
    "\u0301",
    "☃☃ ☃",
    "(2010,)",
  ]
  sentences = encoder.sentences([*text.split("\n"), *odd])
  ids, lengths = encoder.encode(sentences)
  expected = tokenizer.encode_batch(sentences)
  assert lengths == list(map(len, expected))
  assert ids.tolist() == [i for sentence in expected for i in sentence]
