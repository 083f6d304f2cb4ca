"""The first step of `prepare`: converts a unit of work to packed records and a table of its documents."""

import collections
import dataclasses
import functools
import itertools
import json
from collections.abc import Iterable, Iterator

import numpy as np

from albert_jax import files
from albert_jax.data import records
from albert_jax.data.corpus import near_duplicates, readers, work_units
from albert_jax.data.corpus.sentences import split_sentences
from albert_jax.data.tokenizer import Tokenizer

_BATCH_CHARS = 1 << 19  # characters tokenised at a time, a compromise of speed and memory


@dataclasses.dataclass(frozen=True)
class Settings:
  """The settings of the records of a dataset.

  Attributes:
    segment_tokens: the model length that segments should fill, its three special tokens included.
    sentences: `split` prose lines into sentences, or take each `line` as one.
    lower: lower-case the text; None follows the rules beside the vocabulary.
    keep_accents: keep combining marks; None follows the rules beside the vocabulary.
    validation_fraction: the share of the documents that is held out.
    near_duplicates: documents that are at least this similar to an earlier one are dropped; 0 keeps them.
  """

  segment_tokens: int = 512
  sentences: str = "split"
  lower: bool | None = None
  keep_accents: bool | None = None
  validation_fraction: float = 0.05
  near_duplicates: float = 0.0


def segment_bounds(lengths: list[int], limit: int) -> list[list[int]]:
  """Cuts a document into segments of whole sentences.

  Args:
    lengths: list of n ints ≥ 1, tokens in each sentence.
    limit: the most tokens in a segment; a longer sentence is cut.

  Returns:
    list of list[int]: for each segment the lengths of its sentences. All their sums are at most `limit`, and together
    they are `lengths` but for the cuts.
  """
  segments, current, size = [], [], 0
  for length in lengths:
    while length > limit:
      segments += [current] if current else []
      segments.append([limit])
      current, size, length = [], 0, length - limit
    if size + length > limit:
      segments.append(current)
      current, size = [], 0
    current.append(length)
    size += length
  return [*segments, current] if current else segments


class Encoder:
  """Tokenises documents in batches that span documents; the order is kept."""

  def __init__(self, tokenizer: Tokenizer, settings: Settings):
    self.settings = settings
    self.tokenizer = tokenizer
    self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    self.starts_word = records.word_starts(tokenizer.pieces)

  def sentences(self, lines: list[str]) -> list[str]:
    """Returns the sentences of a document, with single spaces between words."""
    # The only white space of printable text is the space, so most lines need no splitting into words.
    lines = [line if "  " not in line and line.isprintable() else " ".join(line.split()) for line in lines]
    return [s for line in lines for s in split_sentences(line)] if self.settings.sentences == "split" else lines

  def documents(self, documents: Iterable[list[str]]) -> Iterator[tuple[int, np.ndarray, list[int]]]:
    """Yields (document id, ids [T], sentence lengths) of an iterable of documents."""
    waiting, size = [], 0
    for lines in documents:
      sentences = self.sentences(lines)
      waiting.append((records.document_id(lines), sentences))
      size += sum(map(len, sentences))
      if size > _BATCH_CHARS:
        yield from self._flush(waiting)
        waiting, size = [], 0
    yield from self._flush(waiting)

  def _flush(self, waiting):
    ids, lengths = self.encode([s for _, document in waiting for s in document])
    token, sentence = 0, 0
    for document, sentences in waiting:
      counts = lengths[sentence : sentence + len(sentences)]
      size = sum(counts)
      yield document, ids[token : token + size], [n for n in counts if n]
      token += size
      sentence += len(sentences)

  def encode(self, sentences: list[str]) -> tuple[np.ndarray, list[int]]:
    """Returns the ids of sentences, joined, and the list of how many each has."""
    parts, lengths, first, size = [np.zeros(0, self.dtype)], [], 0, 0
    for i, sentence in enumerate(sentences):
      size += len(sentence)
      # Ids are large as Python integers, so even a single document is tokenised in parts.
      if size > _BATCH_CHARS or i == len(sentences) - 1:
        encoded = self.tokenizer.encode_batch(sentences[first : i + 1])
        lengths += map(len, encoded)
        parts.append(np.fromiter(itertools.chain.from_iterable(encoded), self.dtype))
        first, size = i + 1, 0
    return np.concatenate(parts), lengths

  def pack(self, document: int, ids: np.ndarray, lengths: list[int]) -> Iterator[tuple[bytes, int]]:
    """Yields the packed segments of a document, each with its number of sentences."""
    token = 0
    for segment in segment_bounds(lengths, self.settings.segment_tokens - 3):
      size = sum(segment)
      part = ids[token : token + size]
      starts = np.cumsum([0, *segment[:-1]]).astype("<u2")
      yield records.pack(part, starts, self.starts_word[part], document), len(segment)
      token += size


@functools.lru_cache(maxsize=1)
def _encoder(spm, settings):
  """Returns the encoder of this process; making its tables takes as long as encoding some megabytes of text."""
  return Encoder(Tokenizer(spm, lower=settings.lower, keep_accents=settings.keep_accents), settings)


def tokenise_unit(
  number: int, unit: work_units.Unit, reading: work_units.Reading, settings: Settings, spm: str, folder: str
) -> None:
  """Makes `folder/NUMBER.records`, packed records one after the other, and then the table `folder/NUMBER.npz`.

  A unit that has a table is finished. The columns of the table: for each document `document` (its id), `segments`,
  `tokens`, `sentences`, `unknown` (tokens); for each record its `sizes` in bytes; `pairs`, the number of records with
  two sentences; `tally`, the counts of defects, as JSON; on request `sketch`, see near_duplicates.py.

  Args:
    number: int, the unit's place in the corpus.
    unit: work_units.Unit.
    reading: work_units.Reading.
    settings: Settings.
    spm: path of the vocabulary.
    folder: where the files go.
  """
  path = f"{folder}/{number:06d}"
  if files.exists(f"{path}.npz"):
    return
  encoder = _encoder(spm, settings)
  unknown = encoder.tokenizer.unk_id
  tally = collections.Counter()
  documents, sizes, sketches, pairs = [], [], [], 0
  with files.writing(f"{path}.records") as local, open(local, "wb") as file:
    for document, ids, lengths in encoder.documents(readers.documents(unit, reading, tally)):
      first = len(sizes)
      for packed, sentences in encoder.pack(document, ids, lengths):
        file.write(packed)
        sizes.append(len(packed))
        pairs += sentences > 1
      tally["documents without tokens"] += not lengths
      tally["documents of one sentence"] += len(lengths) == 1
      tally["sentences longer than a segment"] += sum(n > settings.segment_tokens - 3 for n in lengths)
      if settings.near_duplicates:
        sketches.append(near_duplicates.sketch(ids))
      documents.append((document, len(sizes) - first, len(ids), len(lengths), int((ids == unknown).sum())))
  columns = np.array(documents, np.uint64).reshape(-1, 5).T
  names = ("segments", "tokens", "sentences", "unknown")
  with files.writing(f"{path}.npz") as local:
    np.savez(
      local,
      document=columns[0],
      sizes=np.array(sizes, np.int64),
      sketch=np.array(sketches, np.uint32).reshape(-1, near_duplicates.SKETCH),
      pairs=pairs,
      tally=json.dumps(tally),
      **{name: column.astype(np.int64) for name, column in zip(names, columns[1:], strict=True)},
    )
