"""Text to words, and numbers to words."""

import pytest

from albert_jax.data.speech import words
from albert_jax.errors import UserError


def test_words_and_punctuation():
  text = 'The "well-known" 1890s, isn’t it? (L\'Étoile…) 50% a_b\nnext — line'
  assert " ".join(words.split(text)) == (
    'the " well known " 1890 s , isn\'t it ? ( l\'étoile … ) 50 a b next — line'
  )  # fmt: skip


def test_marks_belong_to_their_letters():
  assert words.split("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
  assert words.split("cafe\u0301 ok") == ["cafe\u0301", "ok"]


def test_the_quick_way_for_ascii_is_the_same():
  text = "It's 5 o'clock; 'quoted' rock'n'roll -- (ok) x_y 3rd a.b,c!? \"z\" tab\tend '"
  assert words._SIMPLE.findall(text.lower()) == words._WORD.findall(text.lower())


@pytest.mark.parametrize(
  ("language", "text", "expected"),
  [
    ("en-us", "in 1890", "in eighteen ninety"),
    ("en-us", "1,234 of 0.5", "one thousand two hundred and thirty four of zero point five"),
    ("en-us", "the 21st", "the twenty first"),
    ("en-us", "10:30 or 007", "ten:thirty or 007"),
    ("en-us", "v1.2.3", "vone two three"),
    ("en-us", "1" * 30, "1" * 30),
    ("de", "1.234,5 und 1999", "eintausendzweihundertvierunddreißig Komma fünf und neunzehnhundertneunundneunzig"),
    ("pt-br", "21", "vinte e um"),
  ],
)
def test_numbers_are_written_out(language, text, expected):
  pytest.importorskip("num2words", reason="needs num2words: pip install 'albert-jax[speech]'")
  assert words.number_speller(language)(text) == expected


def test_a_language_without_number_words():
  pytest.importorskip("num2words", reason="needs num2words: pip install 'albert-jax[speech]'")
  with pytest.raises(UserError, match=r"does not know the language 'xyz'.*--numbers=keep"):
    words.number_speller("xyz")
