"""Sentence splitting."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from albert_jax.data.corpus.sentences import split_sentences


@pytest.mark.parametrize(
  "text",
  [
    "One sentence.|Another one!|A third?|Yes.",
    'He said "Stop."|She did not.|"Why?"|"Because."',
    "Mr. Smith met Dr. J. R. Jones at 5 p.m. yesterday.|They talked.",
    "It cost 3.50 dollars in 1990.|Then it rose.",
    "See e.g. Chapter 3.|It says more, etc.|And so on.",
    "so it went. lower case goes on.|(Brackets too.)|Then the end …|Or not.",
    "Am 3. Oktober kam z. B. Herr Prof. Müller, bzw. seine Frau.|Das war im 19. Jahrhundert.|„Ja!“|Er ging.",
    "她走了。|“你好！”|他说：“再见。”|然后呢？|完。",
    "1. A list item is one sentence.|It has two.",
    "यह पहला वाक्य है।|दूसरा भी है।|तीसरा?|हाँ॥|अन्त",
    "كيف حالك؟|أنا بخير.|یہ جملہ ہے۔|دوسرا جملہ۔",
    "no mark at all",
    "Trailing space. ",
  ],
)
def test_known_splits(text):
  expected = [part.strip() for part in text.split("|")]
  joined = text.replace("|", "" if "。" in text else " ")
  assert split_sentences(joined) == expected


@given(st.text())
def test_no_visible_character_is_lost(text):
  sentences = split_sentences(text)
  assert "".join("".join(sentences).split()) == "".join(text.split())
  assert all(s and s == s.strip() for s in sentences)
