"""Text to words and punctuation, numbers to words: what is phonemised one by one."""

import functools
import re
import unicodedata
from collections.abc import Callable

from albert_jax.errors import UserError

# Letters with their marks (vowel signs of Indic scripts, accents written apart) and apostrophes inside; digits; or one
# mark of punctuation. Everything else separates.
_LETTER = r"[^\W\d_]"
_MARKS = "".join(sorted({c for c in map(chr, range(0x300, 0x20000)) if unicodedata.category(c) in ("Mn", "Mc")}))
_PART = rf"{_LETTER}(?:{_LETTER}|[{_MARKS}])*"
_WORD = re.compile(rf"{_PART}(?:['’]{_PART})*|\d+|[;:,.!?¡¿—…\"«»“”()]")
_SIMPLE = re.compile(r"[a-z]+(?:'[a-z]+)*|\d+|[;:,.!?\"()]")  # the same on ASCII, five times faster
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_ORDINAL = re.compile(r"(\d+)(st|nd|rd|th)\b")  # English
# Languages that write 1,000.5; the others write 1.000,5.
_POINT = ("en", "zh", "ja", "ko", "th", "he", "hi", "te", "kn", "bn", "am", "tet", "ce")
_MAX_DIGITS = 15


def split(text: str) -> list[str]:
  """Returns the words and marks of punctuation of a text, in lower case.

  Example: "The well-known 1890s." -> the, well, known, 1890, s, .
  """
  text = text.lower().replace("’", "'")
  return [word for line in text.split("\n") for word in (_SIMPLE if line.isascii() else _WORD).findall(line)]


def is_number(word: str) -> bool:
  """Returns whether `split` made the word of digits."""
  return word.isdigit()


def is_punctuation(word: str) -> bool:
  """Returns whether a word is a mark of punctuation, which is its own phoneme."""
  return len(word) == 1 and not word.isalnum()


def number_speller(language: str) -> Callable[[str], str]:
  """Returns a function that writes the numbers of a text out, by num2words.

  Args:
    language: espeak's code, such as `en-us`; num2words knows languages by the first part of it, some by the whole.

  Raises:
    UserError: num2words is missing, or does not know the language.
  """
  try:
    import num2words
  except ImportError:
    raise UserError(
      "--numbers=words needs num2words: pip install 'albert-jax[speech]'; --numbers=keep keeps the digits"
    ) from None
  known = num2words.CONVERTER_CLASSES
  name = next((name for name in (language.replace("-", "_"), language.split("-")[0]) if name in known), None)
  if name is None:
    raise UserError(
      f"--numbers=words: num2words does not know the language {language!r}; leave numbers to the "
      "phonemiser: --numbers=keep"
    )
  point = "." if language.split("-")[0] in _POINT else ","

  @functools.lru_cache(maxsize=1 << 16)
  def spell(number: str, kind: str = "cardinal") -> str:
    if len(number) > _MAX_DIGITS:
      return number
    value = float(number) if "." in number else int(number)
    try:
      text = num2words.num2words(value, lang=name, to=kind)
    except (NotImplementedError, OverflowError, ArithmeticError, ValueError, TypeError, IndexError, KeyError):
      return number  # Left to the phonemiser, and counted.
    return " ".join(re.sub(r"[,-]", " ", text).split())

  def of_match(match):
    number = match.group()
    parts = re.split(r"[.,]", number)
    group = "," if point == "." else "."
    if len(parts) == 1:
      # Four digits without a separator are most often a year. Digits that begin with 0 are no number.
      if len(number) == 4 and 1100 <= int(number) < 2100:
        return spell(number, "year")
      return number if number.startswith("0") and len(number) > 1 else spell(number)
    whole = number.split(point)
    if len(whole) <= 2 and all(len(part) == 3 for part in whole[0].split(group)[1:]):
      digits = whole[0].replace(group, "")
      if len(whole) == 1:
        return spell(digits)
      if group not in whole[1]:
        return spell(f"{digits}.{whole[1]}")
    return " ".join(spell(part) if not part.startswith("0") else part for part in parts)  # Dates, versions, addresses.

  def write_out(text):
    if name.startswith("en"):
      text = _ORDINAL.sub(lambda match: spell(match[1], "ordinal"), text)
    return NUMBER.sub(of_match, text)

  return write_out
