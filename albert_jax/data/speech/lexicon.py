"""The distinct words of a dataset, each once: its phonemes as symbols, and which target of the word loss it is.

A record of a phoneme dataset (data/records.py) holds an entry of the lexicon for each word. So a word is phonemised
once, records are small, and the symbols of a row are looked up when a batch is made.
"""

import functools
import io
import os
import pathlib
from typing import NamedTuple

import numpy as np

from albert_jax import files
from albert_jax.data.speech import symbols as symbol_tables
from albert_jax.data.speech.symbols import TARGETS_FILE, Symbols

FILE = "lexicon.npz"
# The first targets of the word loss: the space after a word, and a word that is too rare to have a target.
SPACE, UNKNOWN, FIRST_WORD = 0, 1, 2
SPECIAL = ("<space>", "<unknown>")


class Lexicon(NamedTuple):
  """The words of a dataset by entry.

  Attributes:
    symbols: uint16 array, the symbols of all entries one after the other.
    start: int64 array [W + 1], where each entry's symbols begin.
    target: int32 array [W], the entry's target of the word loss.
    words, phonemes: lists of W strings.
  """

  symbols: np.ndarray
  start: np.ndarray
  target: np.ndarray
  words: list[str]
  phonemes: list[str]

  @property
  def sizes(self) -> np.ndarray:
    """Symbols of each entry, int64 [W]; the space that follows it is not counted."""
    return np.diff(self.start)


def build(words: list[str], phonemes: list[str], targets: list[str], table: Symbols) -> Lexicon:
  """Makes a lexicon.

  Args:
    words, phonemes: the entries.
    targets: the words that are targets, in their order.
    table: the symbol table; characters outside it become its unknown symbol.
  """
  number_of = {word: FIRST_WORD + i for i, word in enumerate(targets)}
  sizes = np.fromiter(map(len, phonemes), np.int64, len(phonemes))
  return Lexicon(
    symbols=table.encode("".join(phonemes)),
    start=np.append(0, np.cumsum(sizes)),
    target=np.fromiter((number_of.get(word, UNKNOWN) for word in words), np.int32, len(words)),
    words=words,
    phonemes=phonemes,
  )


def save(folder: str, lexicon: Lexicon, targets: list[str], table: Symbols) -> None:
  """Writes a lexicon, the words that are targets and the symbol table into a folder or a store."""
  data = io.BytesIO()
  np.savez_compressed(
    data, symbols=lexicon.symbols, start=lexicon.start, target=lexicon.target,
    words=_joined(lexicon.words), phonemes=_joined(lexicon.phonemes),
  )  # fmt: skip
  files.write(f"{folder}/{FILE}", data.getvalue())
  files.write(f"{folder}/{TARGETS_FILE}", "".join(f"{word}\n" for word in (*SPECIAL, *targets)).encode())
  files.write(f"{folder}/{symbol_tables.FILE}", table.to_json().encode())


@functools.lru_cache(maxsize=8)
def load(folder: str) -> Lexicon:
  """Returns the lexicon of a dataset, read once a process."""
  with np.load(io.BytesIO(files.read(f"{os.path.expanduser(folder)}/{FILE}"))) as table:
    return Lexicon(
      table["symbols"], table["start"], table["target"], _separate(table["words"]), _separate(table["phonemes"])
    )


def load_targets(folder: str) -> list[str]:
  """Returns the names of all targets of the word loss, by id."""
  return (pathlib.Path(folder).expanduser() / TARGETS_FILE).read_text("utf-8").split("\n")[:-1]


def _joined(strings):
  return np.frombuffer("\n".join(strings).encode("utf-8", "surrogatepass"), np.uint8)


def _separate(data):
  return data.tobytes().decode("utf-8", "surrogatepass").split("\n")
