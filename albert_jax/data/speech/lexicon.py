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
from albert_jax.data.speech import words as text_words
from albert_jax.data.speech.symbols import TARGETS_FILE, Symbols
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError, message_lines

FILE = "lexicon.npz"
# The first targets of the word loss: the space after a word, and a word that is too rare to have a target.
SPACE, UNKNOWN, FIRST_WORD = 0, 1, 2
SPECIAL = ("<space>", "<unknown>")
_WORD_START = "▁"  # of a piece of SentencePiece


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
  """Returns the lexicon of a dataset, read once a process.

  Raises:
    UserError: the file is damaged.
  """
  path = f"{os.path.expanduser(folder)}/{FILE}"
  data = files.read(path)
  try:
    with np.load(io.BytesIO(data), allow_pickle=False) as table:
      return Lexicon(
        table["symbols"], table["start"], table["target"], _separate(table["words"]), _separate(table["phonemes"])
      )
  except Exception as error:  # NumPy and zipfile fail in many ways.
    raise UserError(
      f"{path} is damaged ({message_lines(error)[0]}); copy the dataset again, or make it again with: albert-jax "
      "phonemes"
    ) from None


def load_targets(folder: str) -> list[str]:
  """Returns the names of all targets of the word loss, by id."""
  return (pathlib.Path(folder).expanduser() / TARGETS_FILE).read_text("utf-8").split("\n")[:-1]


def read_words(path: str) -> list[str]:
  """Reads the words that are targets of the word loss from another model or from a tokenizer.

  Args:
    path: `words.txt` of a dataset of phonemes or of a PL-BERT, or a folder that holds one; else a tokenizer, of which
      the pieces that are whole words in lower case are taken.

  Returns:
    the words by target id, without those of SPECIAL.

  Raises:
    UserError: no words can be read there.
  """
  location = pathlib.Path(path).expanduser()
  for file in (location, location / TARGETS_FILE, location / "export" / TARGETS_FILE):
    if file.name == TARGETS_FILE and file.is_file():
      try:
        lines = file.read_text("utf-8").split("\n")[:-1]
      except UnicodeDecodeError:
        lines = []
      words = lines[FIRST_WORD:]
      if tuple(lines[:FIRST_WORD]) != SPECIAL or not words or len(set(words)) < len(words):
        raise UserError(
          f"{file} is no list of word targets: expected UTF-8, {' and '.join(SPECIAL)} on the first lines, then "
          "different words, one a line"
        )
      return words
  if not location.exists():
    raise UserError(
      f"--words_from={path} does not exist; expected a dataset of phonemes, a PL-BERT or their {TARGETS_FILE}, or a "
      "tokenizer such as spiece.model"
    )
  tokenizer = Tokenizer(path)
  pieces = [tokenizer.pieces[i] for i in tokenizer.ordinary_ids]
  if any(piece.startswith(_WORD_START) for piece in pieces):
    pieces = [piece[len(_WORD_START) :] for piece in pieces if piece.startswith(_WORD_START)]
  words = [piece for piece in dict.fromkeys(pieces) if text_words.split(piece) == [piece]]
  if not words:
    raise UserError(f"{path} has no piece that is a word in lower case, so no word would be a target")
  return words


def _joined(strings):
  return np.frombuffer("\n".join(strings).encode("utf-8", "surrogatepass"), np.uint8)


def _separate(data):
  return data.tobytes().decode("utf-8", "surrogatepass").split("\n")
