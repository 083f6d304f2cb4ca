"""Splits text into words at the word boundaries of Unicode (UAX 29), adapted to the conventions of tagged corpora.

`regex` implements the boundaries: combining marks, joiners and emoji modifiers stay with their characters.
"""

import itertools

import regex

_BOUNDARY = regex.compile(r"(?V1w)\b")
_LETTERS = r"[\p{WB=ALetter}\p{WB=Hebrew_Letter}\p{WB=Numeric}\p{WB=Katakana}\p{WB=ExtendNumLet}]"
_IS_WORD = regex.compile(_LETTERS)
# Thai, Lao, Khmer and Burmese have no spaces between words, and a dictionary would be needed to cut them.
_IS_UNSPACED = regex.compile(r"\p{Line_Break=Complex_Context}")
_IS_INVISIBLE = regex.compile(r"[\p{Z}\p{Cc}\p{Cf}]*")
_POSSESSIVE = regex.compile(r"(?<=.)['’][sS]")
_JOINS = frozenset("-‐‑.&/")
_MARKS = frozenset("#@")


def spans(text: str) -> list[tuple[int, int]]:
  """Finds the words of a text.

  The boundaries are those of UAX 29, so `12,000`, `don't` and an emoji sequence are one word each, and a Chinese
  character is one. As in the usual tagged corpora, `-`, `.`, `&` and `/` join what is on both sides (`e-mail`, `AT&T`),
  `#` and `@` belong to the word that follows, and `'s` is a word. A run of letters of a script that is written without
  spaces, such as Thai, is one word. Every other visible character is a word.

  Args:
    text: any text.

  Returns:
    (start, end) of each word in `text`, in characters.
  """
  bounds = [match.start() for match in _BOUNDARY.finditer(text)]
  word_spans: list[tuple[int, int]] = []
  for start, end in itertools.pairwise(bounds):
    start = _IS_INVISIBLE.match(text, start, end).end()
    if start == end:
      continue
    if _continues(text, word_spans, start):
      word_spans[-1] = (word_spans[-1][0], end)
    elif len(word_spans) > 1 and _joins(text, word_spans, start):
      word_spans[-2:] = [(word_spans[-2][0], end)]
    else:
      word_spans.append((start, end))
  return [part for start, end in word_spans for part in _without_possessive(text, start, end)]


def split(text: str) -> list[str]:
  """Splits a text into words, see `spans`."""
  return [text[start:end] for start, end in spans(text)]


def _continues(text, word_spans, start):
  """Returns whether the part at `start` continues the last word: after `#` and `@`, and in scripts without spaces."""
  if not word_spans or word_spans[-1][1] != start:
    return False
  begin, end = word_spans[-1]
  if text[begin:end] in _MARKS:
    return bool(_IS_WORD.match(text, start))
  return bool(_IS_UNSPACED.match(text, begin) and _IS_UNSPACED.match(text, start))


def _joins(text, word_spans, start):
  """Returns whether the last word is a sign that joins the word before it with the part at `start`."""
  (begin, middle), (sign, end) = word_spans[-2:]
  return (
    text[sign:end] in _JOINS
    and middle == sign
    and end == start
    and bool(_IS_WORD.match(text, start))
    and bool(_IS_WORD.match(text, begin + (text[begin] in _MARKS)))
  )


def _without_possessive(text, start, end):
  if _POSSESSIVE.fullmatch(text, end - 2, end) and end - start > 2:
    return [(start, end - 2), (end - 2, end)]
  return [(start, end)]
