"""The record format: a segment of a document as bytes, packed one at a time and read a batch at a time.

Little-endian, in this order, padded with zeros to a multiple of 8 bytes so that joined records stay aligned:

| field | type | |
|---|---|---|
| document | uint64 | `document_id` of the text the segment is from |
| tokens, sentences | two uint16 | how many of each |
| id_bytes | uint16 | 2 or 4: the width of a token id |
| (unused) | uint16 | 0 |
| ids | uint16 or uint32 each | the tokens |
| sentence starts | uint16 each | the index of each sentence's first token; the first is 0 |
| word starts | 1 bit a token | 1 where a word starts, lowest bit first |
"""

import dataclasses
import hashlib

import numpy as np

from albert_jax.errors import UserError

HEADER_BYTES = 16
MAX_TOKENS = 65535  # what the uint16 fields can count

# Google's rule for SentencePiece (create_pretraining_data.py, `_is_start_piece_sp`). Its punctuation lacks the
# apostrophe, so "'s" starts a word of its own, as does every piece with a letter outside a to z.
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")
_PUNCTUATION = frozenset('!"#$%&"()*+,-./:;?@[\\]^_`{|}~€£')


def word_starts(pieces: list[str]) -> np.ndarray:
  """Returns which pieces start a word, for whole-word masking.

  Args:
    pieces: list[str], the vocabulary by id: SentencePiece, or WordPiece where `##` marks what continues a word.

  Returns:
    bool array [V].
  """
  if any(piece.startswith("##") for piece in pieces):
    return np.array([not piece.startswith("##") for piece in pieces])
  inside = _LETTERS | _PUNCTUATION
  return np.array(
    [p.startswith(("▁", "<")) or p in _PUNCTUATION or not all(c.lower() in inside for c in p) for p in pieces]
  )


def document_id(lines: list[str]) -> int:
  """Returns a stable 64-bit id of a document's text: equal texts have equal ids, on every machine."""
  digest = hashlib.blake2b(digest_size=8)
  for i, line in enumerate(lines):
    digest.update(("\n" + line if i else line).encode("utf-8", "surrogatepass"))
  return int.from_bytes(digest.digest(), "little")


def pack(ids: np.ndarray, sentence_starts: np.ndarray, starts_word: np.ndarray, document: int) -> bytes:
  """Packs one segment.

  Args:
    ids: uint16 or uint32 array [T], T ≤ MAX_TOKENS.
    sentence_starts: uint16 array [S], ascending from 0.
    starts_word: bool array [T].
    document: int, see `document_id`.

  Returns:
    bytes.
  """
  header = document.to_bytes(8, "little") + np.array([len(ids), len(sentence_starts), ids.itemsize, 0], "<u2").tobytes()
  body = ids.tobytes() + sentence_starts.tobytes() + np.packbits(starts_word, bitorder="little").tobytes()
  return header + body + bytes(-len(body) % 8)


@dataclasses.dataclass(frozen=True)
class Records:
  """A batch of R records, still joined; all arrays but the first three are [R].

  Attributes:
    data: uint8 array, the joined bytes.
    ids: the same bytes as token ids.
    sentence_starts: int64 array, those of all records one after the other.
    tokens, sentences: int64, their numbers.
    id_base: the index of a record's first id in `ids`.
    word_base: the index of a record's word starts in `data`.
    sentence_base: the index of a record's first sentence in `sentence_starts`.
    document: uint64.
  """

  data: np.ndarray
  ids: np.ndarray
  sentence_starts: np.ndarray
  tokens: np.ndarray
  sentences: np.ndarray
  id_base: np.ndarray
  word_base: np.ndarray
  sentence_base: np.ndarray
  document: np.ndarray


def ragged(base: np.ndarray, sizes: np.ndarray) -> np.ndarray:
  """Returns the indices of runs: for each i, `base[i]`, `base[i] + 1`, … (`sizes[i]` of them), in one int64 array."""
  ends = np.cumsum(sizes)
  return np.arange(ends[-1] if len(ends) else 0) + np.repeat(base - ends + sizes, sizes)


def unpack(packed: list[bytes]) -> Records:
  """Reads a batch of packed records without a loop over their contents.

  Args:
    packed: list of R ≥ 1 bytes from `pack`.

  Returns:
    Records.

  Raises:
    UserError: these are not such records.
  """
  data = np.frombuffer(b"".join(packed), np.uint8)
  sizes = np.fromiter(map(len, packed), np.int64, len(packed))
  start = np.cumsum(sizes) - sizes
  if (sizes % 8).any() or (sizes < HEADER_BYTES).any():
    raise UserError("the dataset's records are not segments; make the dataset with: albert-jax prepare")
  half = data.view("<u2")
  header = half[start[:, None] // 2 + np.arange(4, 8)].astype(np.int64)
  tokens, sentences, id_bytes = header[:, 0], header[:, 1], header[:, 2]
  width = id_bytes[0]
  words_at = start + HEADER_BYTES + tokens * width + sentences * 2
  expected = words_at + (tokens + 7) // 8 - start
  if width not in (2, 4) or (id_bytes != width).any() or (sizes != expected + (-expected % 8)).any():
    raise UserError("the dataset's records are not segments; make the dataset with: albert-jax prepare")
  return Records(
    data=data,
    ids=half if width == 2 else data.view("<u4"),
    sentence_starts=half[ragged((start + HEADER_BYTES + tokens * width) // 2, sentences)].astype(np.int64),
    tokens=tokens,
    sentences=sentences,
    id_base=(start + HEADER_BYTES) // width,
    word_base=words_at,
    sentence_base=np.cumsum(sentences) - sentences,
    document=data.view("<u8")[start // 8],
  )
