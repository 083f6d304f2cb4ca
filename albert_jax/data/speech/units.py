"""Units of work of `albert-jax phonemes`: text to entries, entries to packed records. Each makes files of its own."""

import collections
import dataclasses
import functools
import hashlib
import io
import json
from typing import Any, TypeGuard

import numpy as np

from albert_jax import files, strict_json
from albert_jax.data import records
from albert_jax.data.corpus import readers
from albert_jax.data.corpus.shards import load_table
from albert_jax.data.corpus.work_units import Reading
from albert_jax.data.speech import words as text_words
from albert_jax.data.speech.phonemisers import Espeak
from albert_jax.errors import UserError

_SEPARATOR = "\t"  # between a word and its phonemes, in an entry that came with phonemes
MAX_SYMBOLS = 128  # of a word; what is longer is no word


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the records depend on, beside the corpus itself.

  Attributes:
    language: espeak's code; '' for a corpus that has phonemes.
    segment_symbols: the most symbols of a record, spaces included. Training takes a random window of data.seq_length
      from it, so longer records give more windows.
    words: how many of the most frequent words are targets of the word loss.
    words_from: where the targets come from instead, see lexicon.read_words; '' for the most frequent words.
    numbers: `words` writes numbers out, `keep` leaves them to the phonemiser.
    validation_fraction: the share of the documents that is held out.
  """

  language: str = ""
  segment_symbols: int = 1024
  words: int = 30_000
  words_from: str = ""
  numbers: str = "words"
  validation_fraction: float = 0.05


def split_unit(number: int, unit: Any, reading: Reading, settings: Settings, folder: str) -> None:
  """Makes `folder/NUMBER.words.npz`: the distinct entries of a unit, and its documents as numbers of them.

  Columns: `entries`, joined by line feeds (a word, or a word, a tab and its phonemes) and their `counts`; `ids`, the
  entries of all documents one after the other; `document` and `sizes`, the id and the words of each; `tally`, what was
  wrong with the input or is worth knowing, as JSON.
  """
  path = f"{folder}/{number:06d}.words.npz"
  if files.exists(path):
    return
  tally = collections.Counter()
  if settings.language:
    spell = text_words.number_speller(settings.language) if settings.numbers == "words" else None
    documents = _split_documents(readers.documents(unit, reading, tally), spell, tally)
  else:
    documents = _phonemised_documents(unit, tally)
  index = {}
  ids, names, sizes = [], [], []
  for name, entries in documents:
    ids.append(np.array([index.setdefault(entry, len(index)) for entry in entries], np.uint32))
    names.append(name)
    sizes.append(len(entries))
  joined = np.concatenate(ids) if ids else np.zeros(0, np.uint32)
  with files.writing(path) as local:
    np.savez(
      local, entries=np.frombuffer("\n".join(index).encode("utf-8", "surrogatepass"), np.uint8), ids=joined,
      counts=np.bincount(joined, minlength=len(index)), document=np.array(names, np.uint64),
      sizes=np.array(sizes, np.int64), tally=json.dumps(tally),
    )  # fmt: skip


def _split_documents(documents, spell, tally):
  """Yields (document id, words) of texts."""
  for lines in documents:
    text = "\n".join(lines)
    tally["numbers"] += sum(1 for _ in text_words.NUMBER.finditer(text))
    yield records.document_id(lines), text_words.split(spell(text) if spell else text)


def _phonemised_documents(unit, tally):
  """Yields (document id, entries) of JSON lines with `words`, `phonemes` and maybe `document`.

  Lines with one value of `document` that follow each other are one document. The upper bits of its id are those of the
  name, so that parts of a document that two units have are in the same split.
  """
  name, entries = None, []
  for span in unit.spans:
    for line in readers.lines(span, tally):
      if not line:
        continue
      record = read_record(line, span.source)
      tally["lines"] += 1
      if entries and (record.get("document") is None or record["document"] != name):
        yield _part_id(span.source, name, entries), entries
        entries = []
      name = record.get("document")
      entries += [
        " ".join(word.split()) + _SEPARATOR + "".join(phonemes.split())
        for word, phonemes in zip(record["words"], record["phonemes"], strict=True)
      ]
  if entries:
    yield _part_id(unit.spans[-1].source, name, entries), entries


def read_record(line: str, source: str) -> dict:
  """Parses a line `{"words": [...], "phonemes": [...]}` with as many words as phonemes.

  Args:
    line: one line of JSON.
    source: the name of its file, for errors.

  Returns:
    the object as a dict.

  Raises:
    UserError: the line is no such object.
  """
  record = strict_json.loads(line, f"{source}: {line[:40]!r}")
  words, phonemes = (record.get(name) for name in ("words", "phonemes")) if isinstance(record, dict) else (None, None)
  if not (_is_strings(words) and _is_strings(phonemes)):
    raise UserError(f"{source}: a line has no lists of strings {line:.60}; expected {_EXPECTED}")
  if len(words) != len(phonemes):
    raise UserError(
      f"{source}: a line has {len(words)} words and {len(phonemes)} phonemes ({' '.join(words)[:40]!r}); "
      "expected as many phonemes as words"
    )
  return record


def _is_strings(value: Any) -> TypeGuard[list[str]]:
  return isinstance(value, list) and all(isinstance(item, str) for item in value)


_EXPECTED = 'lines as {"document": 1, "words": ["hello"], "phonemes": ["həlˈoʊ"]}'


def _part_id(source, name, entries):
  content = hashlib.blake2b("\n".join(entries).encode("utf-8", "surrogatepass"), digest_size=8).digest()
  if name is None:
    return int.from_bytes(content, "little")
  upper = hashlib.blake2b(f"{source.rsplit('/', 1)[-1]}\n{name!r}".encode(), digest_size=8).digest()
  return int.from_bytes(content[:2] + upper[2:], "little")


def entries_of(table: dict[str, np.ndarray]) -> list[str]:
  """Returns the entries of a table of `split_unit`."""
  data = table["entries"].tobytes().decode("utf-8", "surrogatepass")
  return data.split("\n") if data else []


def word_and_phonemes(entry: str) -> tuple[str, str | None]:
  """Returns the word of an entry, and its phonemes if it came with them."""
  word, tab, phonemes = entry.partition(_SEPARATOR)
  return word, phonemes if tab else None


@functools.lru_cache(maxsize=1)
def _phonemiser(language):
  return Espeak(language)


def phoneme_file(folder: str, words: tuple[str, ...]) -> str:
  """Returns the file with the phonemes of a list of words. Other words have another file."""
  return f"{folder}/{files.named_after(chr(10).join(words))}.phonemes.json"


def phonemise_words(words: tuple[str, ...], language: str, folder: str) -> None:
  """Makes the file `phoneme_file` with the phonemes of a list of words."""
  path = phoneme_file(folder, words)
  if not files.exists(path):
    files.write(path, json.dumps(_phonemiser(language).phonemes(list(words)), ensure_ascii=False).encode())


def pack_unit(number: int, folder: str, segment_symbols: int) -> None:
  """Makes `folder/NUMBER.records`, packed records one after the other, and the table `folder/NUMBER.npz`.

  The table's columns are those of `shards.copy_unit`: `document` and `segments` of each document, `sizes` of
  each record; `words` and `symbols` of each document; and `record_symbols` of each record.

  Args:
    number: the unit's place in the corpus.
    folder: where its files are: those of `split_unit`; `NUMBER.entries.npy`, which entry of the lexicon each of the
      unit's entries is (-1 for none, which is left out); `sizes.npy`, the symbols of each entry of the lexicon.
    segment_symbols: see Settings.
  """
  path = f"{folder}/{number:06d}"
  table = load_table(f"{path}.words.npz")
  entry, symbols_of = (np.load(io.BytesIO(files.read(file))) for file in (f"{path}.entries.npy", f"{folder}/sizes.npy"))
  kind = np.dtype("<u2" if len(symbols_of) <= 1 << 16 else "<u4")
  ids = entry[table["ids"]]
  is_kept = ids >= 0
  owner = np.repeat(np.arange(len(table["sizes"])), table["sizes"])[is_kept]
  words = np.bincount(owner, minlength=len(table["sizes"]))
  ids = ids[is_kept]
  symbols = symbols_of[ids] + 1  # and a space
  total = np.bincount(owner, weights=symbols, minlength=len(words)).astype(np.int64)
  segments, sizes, record_symbols, first = np.zeros(len(words), np.int64), [], [], 0
  with files.writing(f"{path}.records") as local, open(local, "wb") as file:
    for i, count in enumerate(words.tolist()):
      ends = np.cumsum(symbols[first : first + count])
      # Pieces of about one size, so that none is a few words.
      pieces = -(-int(total[i]) // segment_symbols)
      cuts = np.searchsorted(ends, total[i] * np.arange(1, pieces) // max(1, pieces), side="right") if pieces else []
      bounds = np.unique([0, *cuts, count])
      for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        symbol_ids = ids[first + a : first + b].astype(kind)
        packed = records.pack(symbol_ids, np.zeros(1, "<u2"), np.ones(len(symbol_ids), bool), int(table["document"][i]))
        file.write(packed)
        sizes.append(len(packed))
        record_symbols.append(ends[b - 1] - (ends[a - 1] if a else 0))
      segments[i] = len(bounds) - 1
      first += count
  with files.writing(f"{path}.npz") as local:
    np.savez(
      local, document=table["document"], segments=segments, sizes=np.array(sizes, np.int64), words=words, symbols=total,
      record_symbols=np.array(record_symbols, np.int64),
    )  # fmt: skip
