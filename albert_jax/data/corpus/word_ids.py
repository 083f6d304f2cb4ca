"""Text to ids for gigabytes: most words have been seen before, and SentencePiece is asked only about the others.

Whole arrays of words are hashed and looked up at a time. A dictionary was tried: with its entries all over the memory
it was no faster than SentencePiece.
"""

import itertools

import numpy as np

from albert_jax.data import rng
from albert_jax.data.records import ragged

_SLOTS_BITS = 20  # the table's entries; 16 bytes each
_KEPT_TOKENS = 1 << 22  # ids in the store from which on it is emptied
_SPACE, _END = ord(" "), ord("\n")
_ENTRY = np.dtype([("hash", "u8"), ("begin", "u4"), ("size", "u4")])
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse


def _powers(base, count):
  """base ** i modulo 2 ** 64 for i from 0 to count - 1."""
  powers = np.full(count, base, np.uint64)
  powers[0] = 1
  return np.cumprod(powers, out=powers)


class WordIds:
  """The ids of many sentences, by remembering those of words.

  The ids are those of `Tokenizer.encode` but for ties. Where two ways to cut a word are equally good (`888` is `88 8`
  or `8 88`), SentencePiece goes by how the sum over all that stands before is rounded; here a word is cut as if it
  stood alone. Where the words of a vocabulary do not (Tokenizer.words_stand_alone), whole sentences are remembered.

  Words are known by 64 bits of hash, as documents are (records.document_id): among ten million different ones, two are
  confused once in 400,000 corpora. Memory is bounded, at some 50 MB: a new word takes the place of an old one.
  """

  def __init__(self, tokenizer, dtype):
    """`dtype` is that of the ids."""
    self.tokenizer = tokenizer
    self.letters = rng.bits(rng.keys(0, "letters", np.zeros(1)), 256)[0]
    self.powers = self.inverses = np.zeros(0, np.uint64)
    self.entries = np.zeros(1 << _SLOTS_BITS, _ENTRY)  # where a word's ids are in `store`; its place is in its hash
    self.store = np.zeros(1 << 16, dtype)
    self.used = 0

  def encode(self, sentences):
    """The ids of sentences.

    Args:
      sentences: list of n ≥ 1 str, with single spaces between words.

    Returns:
      ids, an array of those of all, joined; and an int64 array [n] of how many each has.
    """
    if self.used > _KEPT_TOKENS:
      self.entries[:] = 0
      self.used = 0
    # SentencePiece takes `▁` for a space, so the words around one do not stand alone. Tabs keep a sentence together;
    # the tokenizer takes them for spaces.
    if not self.tokenizer.words_stand_alone:
      sentences = [sentence.replace(" ", "\t") for sentence in sentences]
    text = "\n".join(sentences)
    if "▁" in text:
      text = "\n".join(sentence.replace(" ", "\t") if "▁" in sentence else sentence for sentence in sentences)
    data = (text + "\n").encode("utf-8", "surrogatepass")
    if self.tokenizer.lower:
      data = data.lower()  # only A to Z, which the tokenizer would do last; so there are fewer different words
    start, end, hashes, is_last = self._words(data)
    slots = (hashes >> np.uint64(64 - _SLOTS_BITS)).astype(np.int64)
    found = self.entries[slots]
    new = np.flatnonzero(found["hash"] != hashes)
    if len(new):
      _, first, which = np.unique(hashes[new], return_index=True, return_inverse=True)
      learnt = self._learn(data, start[new[first]], end[new[first]], hashes[new[first]])
      self.entries[slots[new[first]]] = learnt
      found[new] = learnt[which]
    size = found["size"].astype(np.int64)
    ids = self.store[ragged(found["begin"].astype(np.int64), size)]
    return ids, np.diff(np.cumsum(size)[is_last], prepend=0)

  def _words(self, data):
    """The words of bytes: where each begins and ends, its hash, and whether it is the last of a sentence.

    The hash is a polynomial of random numbers for the bytes; sums over all that comes before give it for all words.
    """
    codes = np.frombuffer(data, np.uint8)
    if len(codes) > len(self.powers):
      self.powers = _powers(_BASE, len(codes) * 5 // 4)
      self.inverses = _powers(pow(_BASE, -1, 1 << 64), len(codes) * 5 // 4)
    end = np.flatnonzero((codes == _SPACE) | (codes == _END))
    start = np.append(0, end[:-1] + 1)
    before = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(self.letters[codes] * self.powers[: len(codes)], out=before[1:])
    return start, end, (before[end] - before[start]) * self.inverses[start], codes[end] == _END

  def _learn(self, data, start, end, hashes):
    """Encodes words and stores their ids; returns their entries."""
    words = [data[a:b].decode("utf-8", "surrogatepass") for a, b in zip(start.tolist(), end.tolist(), strict=True)]
    ids = self.tokenizer.encode_batch(words)
    entries = np.zeros(len(words), _ENTRY)
    entries["hash"] = hashes
    entries["size"] = size = np.fromiter(map(len, ids), np.int64, len(ids))
    entries["begin"] = self.used + np.cumsum(size) - size
    first, self.used = self.used, self.used + int(size.sum())
    if self.used > len(self.store):
      self.store = np.resize(self.store, 2 * self.used)
    self.store[first : self.used] = np.fromiter(itertools.chain.from_iterable(ids), self.store.dtype, self.used - first)
    return entries
