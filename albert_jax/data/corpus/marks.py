"""Counts the words of a corpus that change if combining marks (accents, vowel signs, tones) are dropped."""

import collections
import dataclasses
import functools
import itertools
import unicodedata
from collections.abc import Iterable

from albert_jax.data.corpus import readers, work_units
from albert_jax.data.tokenizer import normalize
from albert_jax.errors import UserError

MAX_SHARE = 0.01  # of the words that may lose a mark without a decision of the user
_SAMPLE_UNITS, _SAMPLE_CHARS = 16, 1 << 21


@dataclasses.dataclass(frozen=True)
class Marks:
  """The number of words of a text that change if marks are dropped.

  Attributes:
    words: the number of words with a letter.
    other: how many of them are of another script than Latin.
    latin_lost, other_lost: how many words would lose a mark from a Latin letter, and from a letter of another script.
    examples: up to five words, the most frequent first, each as `für -> fur`.
  """

  words: int
  other: int
  latin_lost: int
  other_lost: int
  examples: tuple[str, ...]

  @property
  def latin_share(self) -> float:
    return self.latin_lost / max(1, self.words)

  @property
  def other_share(self) -> float:
    return self.other_lost / max(1, self.words)

  @property
  def is_latin(self) -> bool:
    """Whether most words are of Latin script."""
    return self.other <= self.words / 2


def measure(texts: Iterable[str]) -> Marks:
  """Counts the words of a text that lose a mark.

  Args:
    texts: lines or sentences; words are what white space separates.

  Returns:
    Marks.
  """
  counts = collections.Counter(itertools.chain.from_iterable(map(str.split, texts)))
  words = other = latin_lost = other_lost = 0
  examples = []
  for word, count in counts.most_common():
    if word.isascii():
      words += count * any(map(str.isalpha, word))
      continue
    # NFD, as NFKD would also count ligatures and letters in circles.
    chars = unicodedata.normalize("NFD", word)
    letters = [c for c in chars if c.isalpha()]
    if not letters:
      continue
    bases = [a for a, b in itertools.pairwise(chars) if a.isalpha() and unicodedata.combining(b)]
    words += count
    other += count * (sum(map(_is_latin, letters)) <= len(letters) / 2)
    if any(map(_is_latin, bases)):
      latin_lost += count
    elif normalize(word, keep_accents=True) != normalize(word):
      other_lost += count
    else:
      continue
    if len(examples) < 5:
      kept, dropped = (
        unicodedata.normalize("NFC", normalize(word, lower=False, keep_accents=k)) for k in (True, False)
      )
      examples.append(f"{kept[:30]} -> {dropped[:30]}")
  return Marks(words, other, latin_lost, other_lost, tuple(examples))


@functools.cache
def _is_latin(char):
  return char.isascii() or unicodedata.name(char, "").startswith("LATIN")


def measure_corpus(units: list[work_units.Unit], reading: work_units.Reading) -> Marks:
  """Measures a sample of a corpus, taken from up to 16 of its units.

  Args:
    units: the corpus, from `work_units.plan`.
    reading: how to read it.

  Returns:
    Marks of the sample.
  """
  chosen = (
    [units[len(units) * i // _SAMPLE_UNITS] for i in range(_SAMPLE_UNITS)] if len(units) > _SAMPLE_UNITS else units
  )
  return measure(itertools.chain.from_iterable(_head(u, reading, _SAMPLE_CHARS // len(chosen)) for u in chosen))


def _head(unit, reading, size):
  for lines in readers.documents(unit, reading, collections.Counter()):
    for line in lines:
      yield line
      size -= len(line)
    if size < 0:
      return


def keep_accents(marks: Marks, *, is_recorded: bool = True) -> bool:
  """Decides whether to keep the marks of a corpus if the user gives no setting.

  Args:
    marks: what dropping them would change.
    is_recorded: whether the decision will be recorded beside the vocabulary. The setting of an existing vocabulary
      without a record is unknown.

  Returns:
    True for a corpus of another script than Latin, or with more than 1 % of words of such scripts that lose a mark;
    False where hardly any word loses one.

  Raises:
    UserError: more than 1 % of the words lose a mark, and both settings are plausible.
  """
  if is_recorded and (marks.other_share > MAX_SHARE or not marks.is_latin):
    return True
  if marks.latin_share + marks.other_share > MAX_SHARE:
    raise UserError(
      f"{marks.latin_share + marks.other_share:.1%} of the words would lose an accent or another mark, such as "
      f"{', '.join(marks.examples)}; add --keep_accents to keep the marks, or --no-keep_accents to drop them, as the "
      "original does for English"
    )
  return False
