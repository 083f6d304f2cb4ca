"""Words of running text: Unicode's boundaries, and what tagged corpora do besides."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from albert_jax.data import words


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("Dr. Smith's U.S. e-mail: @paul_w, 中国!", "Dr|.|Smith|'s|U.S|.|e-mail|:|@paul_w|,|中|国|!"),
    ("12,000 or 3.14 of AT&T's #tags, and/or don't", "12,000|or|3.14|of|AT&T|'s|#tags|,|and/or|don't"),
    (unicodedata.normalize("NFD", "café für naïve"), unicodedata.normalize("NFD", "café|für|naïve")),
    ("नमस्ते हिन्दी में क्योंकि।", "नमस्ते|हिन्दी|में|क्योंकि|।"),
    ("ক্‌ক ক্‍ষ மொழி ಕನ್ನಡ മലയാളം", "ক্‌ক|ক্‍ষ|மொழி|ಕನ್ನಡ|മലയാളം"),
    ("สวัสดีครับ ไทย, ភាសាខ្មែរ မြန်မာ", "สวัสดีครับ|ไทย|,|ភាសាខ្មែរ|မြန်မာ"),
    ('السَّلامُ عَلَيْكُم שָׁלוֹם צה"ל', 'السَّلامُ|عَلَيْكُم|שָׁלוֹם|צה"ל'),
    ("👩‍👩‍👧 👍🏽🇩🇪🇫🇷 1️⃣ ok", "👩‍👩‍👧|👍🏽|🇩🇪|🇫🇷|1️⃣|ok"),
    ("カタカナ 한국어-A 中-国", "カタカナ|한국어-A|中|-|国"),
    ("'s - # @ -a- \u200b a\u00a0b\ud800", "'|s|-|#|@|-|a|-|a|b|\ud800"),
    (" \n ", ""),
  ],
)
def test_words(text, expected):
  assert words.split(text) == [word for word in expected.split("|") if word]


@given(st.text(st.characters(codec=None), max_size=40))
def test_words_are_parts_of_the_text_in_order_and_only_what_is_invisible_is_left_out(text):
  spans = words.spans(text)
  bounds = [0, *(at for span in spans for at in span), len(text)]
  assert bounds == sorted(bounds)
  assert all(start < end for start, end in spans)
  between = "".join(text[end:start] for end, start in zip(bounds[::2], bounds[1::2], strict=True))
  assert all(unicodedata.category(character)[0] in "ZC" for character in between)


@pytest.mark.parametrize("text", ["e\u0301", "ก็", "क्ष", "ל\u05b9", "각"])
def test_no_word_begins_with_a_combining_mark(text):
  assert words.split(f"x {text}{text} y") == ["x", text + text, "y"]
