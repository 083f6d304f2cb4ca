"""Tokenizes text by the rules of the original, and maps ids back to characters of the text.

The rules of google-research/albert's tokenization.py, for its SentencePiece models: `preprocess_text` (here
`normalize`), SentencePiece, then `encode_pieces`' second look at pieces such as `▁2010,`, whose comma becomes a piece
of its own. The Chinese models use WordPiece (`vocab.txt`) behind the same class. docs/tokenizer.md lists where the
original, SentencePiece and Hugging Face disagree, with an example each.
"""

import functools
import itertools
import json
import os
import pathlib
import re
import sys
import unicodedata
from collections.abc import Iterable

import numpy as np
import sentencepiece

from albert_jax import copies, files, strict_json
from albert_jax.errors import UserError, message_lines

_SPACE = "▁"  # SentencePiece's mark for "a word starts here"
# The names of vocabulary files in folders of Hugging Face and Google, English and Chinese.
_VOCABULARIES = ("spiece.model", "30k-clean.model", "vocab.txt", "vocab_chinese.txt", "tokenizer.json")
_MAX_WORDPIECE_CHARS = 200  # a longer word is one unknown piece (tokenization.py, WordpieceTokenizer)


@functools.cache
def _dropped(keep_accents):
  """Returns a pattern of the characters that are always dropped: combining marks, and halves of surrogate pairs.

  A lone surrogate (a broken escape in a JSON file) is not a character, and SentencePiece refuses it.
  """
  marks = [] if keep_accents else [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.combining(c)]
  return re.compile("[\ud800-\udfff" + "".join(marks) + "]+")


# No character below U+0300 is dropped, and matching the large class above against each of them would be slow.
_MAY_DROP = re.compile("[^\0-\u02ff]+")


_LONG_TEXT, _LONG_RUN = 1000, 64  # characters


@functools.cache
def _long_run():
  """Matches a long run of characters that NFKD turns into combining marks, and the character before it."""
  marks = [c for c in map(chr, range(0x300, sys.maxunicode + 1)) if unicodedata.combining(_decompose(c)[0])]
  return re.compile("(?s:.)[" + "".join(marks) + f"]{{{_LONG_RUN},}}")


def _decompose(text):
  """Returns NFKD of a text in linear time; the standard library takes quadratic time for a run of marks."""
  if len(text) < _LONG_TEXT:
    return unicodedata.normalize("NFKD", text)
  parts, end = [], 0
  for run in _long_run().finditer(text):
    parts.append(unicodedata.normalize("NFKD", text[end : run.start()]))
    parts += _sort_marks([c for char in run.group() for c in unicodedata.normalize("NFKD", char)])
    end = run.end()
  return "".join([*parts, unicodedata.normalize("NFKD", text[end:])])


def _sort_marks(chars):
  """Sorts each run of combining marks by class (canonical ordering); returns a list of the same length."""
  result = []
  for _, run in itertools.groupby(chars, key=lambda c: unicodedata.combining(c) > 0):
    result += sorted(run, key=unicodedata.combining)
  return result


def normalize(text: str, *, lower: bool = True, keep_accents: bool = False, hf_quotes: bool = False) -> str:
  """Normalises a text for SentencePiece as the original (tokenization.py, `preprocess_text`).

  Args:
    text: any Unicode text.
    lower: lower-case, as for all released English models.
    keep_accents: keep combining marks (the original always drops them).
    hf_quotes: also replace ``` `` ``` and `''` by `"`, as Hugging Face does and the original does not.

  Returns:
    str: outer and repeated white space removed, NFKD, without combining marks, lower-cased. Idempotent but for
    characters that NFKD turns into a space and a mark.
  """
  # Most texts have only single spaces as white space; checking this is faster than splitting and joining.
  text = text.strip() if "  " not in text and text.isprintable() else " ".join(text.split())
  if hf_quotes:
    text = text.replace("``", '"').replace("''", '"')
  if not text.isascii():
    dropped = _dropped(keep_accents)
    text = _MAY_DROP.sub(lambda match: dropped.sub("", match.group()), _decompose(text))
  return text.lower() if lower else text


def _normalize_with_spans(text, *, lower, keep_accents, hf_quotes):
  """Normalises a text as `normalize`, and returns the origin of each character.

  Returns:
    A str of n characters, and a sequence of n `(start, end)` in `text`. A dropped mark belongs to the character before
    it.
  """
  if text.isascii() and not hf_quotes and " ".join(text.split()) == text:
    # In most texts, every character keeps its position.
    return (text.lower() if lower else text), [(i, i + 1) for i in range(len(text))]

  chars, spans = [], []
  for word in re.finditer(r"\S+", text):
    if chars:
      chars.append(" ")
      spans.append((spans[-1][1], word.start()))
    for piece in re.finditer(r"``|''|(?s:.)" if hf_quotes else r"(?s:.)", word.group()):
      chars.append('"' if len(piece.group()) == 2 else piece.group())
      spans.append((word.start() + piece.start(), word.start() + piece.end()))

  # NFKD of a string is NFKD of its characters with each run of marks sorted by class (stable). The spans keep the order
  # of the text: the marks of one character share its span, and spans must not decrease.
  decomposed = [(c, span) for char, span in zip(chars, spans, strict=True) for c in unicodedata.normalize("NFKD", char)]
  spans = [span for _, span in decomposed]
  chars = _sort_marks([c for c, _ in decomposed])
  decomposed = zip(chars, spans, strict=True)
  chars, spans = [], []
  dropped = _dropped(keep_accents)
  for c, span in decomposed:
    if not dropped.match(c):
      chars.append(c)
      spans.append(span)
    elif spans:
      spans[-1] = (spans[-1][0], max(spans[-1][1], span[1]))
  text = "".join(chars)
  if lower:
    # Lower-casing depends on neighbours (the final sigma), but the number of resulting characters does not.
    spans = [span for c, span in zip(chars, spans, strict=True) for _ in c.lower()]
    text = text.lower()
  return text, spans


RULES_FILE = "tokenizer_config.json"  # Hugging Face's name
_RULE_NAMES = {"do_lower_case": "lower", "keep_accents": "keep_accents"}


def recorded_rules(path: str | os.PathLike) -> dict[str, bool]:
  """Reads the normalisation rules of a vocabulary from the `tokenizer_config.json` in its folder.

  Args:
    path: the vocabulary, or its folder; local or in a store.

  Returns:
    `lower` and `keep_accents`, if the file has them; {} without a file.

  Raises:
    UserError: the file is damaged, or a rule is neither true nor false.
  """
  path = os.path.expanduser(str(path)).rstrip("/")
  is_vocabulary = path.endswith((".model", ".txt", ".json")) if files.is_url(path) else not os.path.isdir(path)
  folder = (path.rsplit("/", 1)[0] if "/" in path else ".") if is_vocabulary else path
  name = f"{folder}/{RULES_FILE}"
  if not (files.exists(name) if files.is_url(name) else os.path.isfile(name)):
    return {}
  fields = strict_json.loads(files.read(name), name, dict)
  for key in _RULE_NAMES:
    if key in fields and not isinstance(fields[key], bool):
      raise UserError(f"{name}: {key} is {fields[key]!r:.40}; expected true or false")
  return {rule: fields[key] for key, rule in _RULE_NAMES.items() if key in fields}


def rules_file(lower: bool, keep_accents: bool) -> bytes:
  """Returns the contents of the `tokenizer_config.json` that records the rules of a SentencePiece vocabulary."""
  fields = {"tokenizer_class": "AlbertTokenizer", "do_lower_case": lower, "keep_accents": keep_accents}
  return (json.dumps(fields, indent=2) + "\n").encode()


class Tokenizer:
  """A vocabulary file and the rules for tokenizing text.

  The file is read at the first use, in each process anew: the object itself is a few strings and pickles as such.

  Attributes:
    path: the vocabulary: `spiece.model` (SentencePiece), `vocab.txt` (WordPiece) or `tokenizer.json` (the ids are those
      of transformers), or a folder that holds one.
    pieces: list[str], the pieces by id.
    vocab_size: int.
    pad_id, unk_id, cls_id, sep_id, mask_id: the ids of the special pieces, by their names in the vocabulary.
    ordinary_ids: int32 array, the ids of text: not special, control, unknown or unused.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    lower: bool | None = None,
    keep_accents: bool | None = None,
    hf_quotes: bool = False,
    digit_comma: bool = True,
  ):
    """Makes a tokenizer; the vocabulary itself is read at the first use.

    Args:
      path: see the class.
      lower: lower-case the text; None follows the `tokenizer_config.json` in the folder, by default True.
      keep_accents: keep combining marks; None follows that file, by default False.
      hf_quotes: see `normalize`.
      digit_comma: split the comma from pieces that end in a digit and a comma, as the original does.

    Raises:
      UserError: nothing is there, or the rules beside it are damaged.
    """
    rules = {} if lower is not None and keep_accents is not None else recorded_rules(path)
    lower = rules.get("lower", True) if lower is None else lower
    keep_accents = rules.get("keep_accents", False) if keep_accents is None else keep_accents
    path = pathlib.Path(copies.local(os.fspath(path))).expanduser()
    if path.is_dir():
      candidates = [path / name for name in _VOCABULARIES if (path / name).is_file()]
      if not candidates:
        raise UserError(
          f"the folder {path} holds no vocabulary: expected spiece.model (SentencePiece), vocab.txt (WordPiece) or "
          "tokenizer.json in it"
        )
      path = candidates[0]
    if not path.is_file():
      raise UserError(
        f"no vocabulary at {path}: expected a SentencePiece model (spiece.model) or a WordPiece list (vocab.txt); "
        "make one with: albert-jax vocab --input=GLOB --out=DIR"
      )
    self.path = os.fspath(path)
    self.lower, self.keep_accents, self.hf_quotes, self.digit_comma = lower, keep_accents, hf_quotes, digit_comma
    self._rules = {"lower": lower, "keep_accents": keep_accents, "hf_quotes": hf_quotes}
    self._is_fast = path.suffix in (".txt", ".json")  # read by the `tokenizers` library

  def __reduce__(self):
    return Tokenizer, (self.path, self.lower, self.keep_accents, self.hf_quotes, self.digit_comma)

  def __repr__(self):
    return (
      f"Tokenizer({self.path!r}, lower={self.lower}, keep_accents={self.keep_accents}, hf_quotes={self.hf_quotes}, "
      f"digit_comma={self.digit_comma})"
    )

  # The vocabulary.

  @functools.cached_property
  def _model(self):
    if self.path.endswith(".json"):
      return _load_tokenizer_json(self.path)
    return _load_wordpiece(self) if self._is_fast else _load_sentencepiece(self.path)

  @functools.cached_property
  def pieces(self) -> list[str]:
    if self._is_fast:
      return [self._model.id_to_token(i) for i in range(self._model.get_vocab_size())]
    try:
      return [self._model.id_to_piece(i) for i in range(self._model.vocab_size())]
    except UnicodeDecodeError:
      raise UserError(f"{self.path} is damaged: a piece is not UTF-8; copy the file again") from None

  @property
  def vocab_size(self) -> int:
    return len(self.pieces)

  @functools.cached_property
  def _ids(self):
    return {piece: i for i, piece in enumerate(self.pieces)}

  @functools.cached_property
  def _special_ids(self):
    """Returns {'pad', 'unk', 'cls', 'sep', 'mask': id}; raises UserError for those that the vocabulary lacks."""
    names = {"cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    if self._is_fast:
      names |= {"pad": "[PAD]", "unk": "[UNK]"} if "[PAD]" in self._ids else {"pad": "<pad>", "unk": "<unk>"}
    else:
      names |= {"pad": "<pad>"}
    missing = [name for name in names.values() if name not in self._ids]
    if missing:
      raise UserError(
        f"the vocabulary {self.path} has no piece {', '.join(missing)}, which ALBERT needs; make one that does with: "
        "albert-jax vocab --input=GLOB --out=DIR"
      )
    ids = {key: self._ids[name] for key, name in names.items()}
    return ids if self._is_fast else ids | {"unk": self._model.unk_id()}

  pad_id = property(lambda self: self._special_ids["pad"])
  unk_id = property(lambda self: self._special_ids["unk"])
  cls_id = property(lambda self: self._special_ids["cls"])
  sep_id = property(lambda self: self._special_ids["sep"])
  mask_id = property(lambda self: self._special_ids["mask"])

  @functools.cached_property
  def ordinary_ids(self) -> np.ndarray:
    special = set(self._special_ids.values())
    if self._is_fast:
      special |= {i for i, piece in enumerate(self.pieces) if re.fullmatch(r"\[unused\d+\]", piece)}
    else:
      sp = self._model
      special |= {i for i in range(len(self.pieces)) if sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i)}
    return np.array([i for i in range(len(self.pieces)) if i not in special], np.int32)

  @functools.cached_property
  def _resplit(self):
    """Returns {id of a piece such as `▁2010,`: the pieces that replace it}, as the original's `encode_pieces`.

    What a piece becomes depends on nothing but the piece, so a table made once replaces the original's loop over all.
    A piece inside a word stays inside it. This is the intention of the original; its code compares text with bytes,
    which is never equal, so that the rest of such a piece would start a new word. The released vocabulary has no such
    piece.
    """
    table = {}
    for i, piece in enumerate(self.pieces):
      if not self.digit_comma or len(piece) < 2 or piece[-1] != "," or not piece[-2].isdigit():
        continue
      parts = self._model.encode(piece[:-1].replace(_SPACE, ""), out_type=str)
      if not piece.startswith(_SPACE) and parts[0].startswith(_SPACE):
        parts = parts[1:] if parts[0] == _SPACE else [parts[0][1:], *parts[1:]]
      table[i] = [*parts, ","]
    return table

  @functools.cached_property
  def resplit_ids(self) -> dict[int, list[int]]:
    """Returns {id of a piece such as `▁2010,`: the ids that replace it}, see `encode`."""
    return {i: [self._id(part) for part in parts] for i, parts in self._resplit.items()}

  @functools.cached_property
  def _text_ids(self):
    sp = self._model
    return {piece: i for piece, i in self._ids.items() if not (sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i))}

  def _id(self, piece):
    """Returns the id of a piece of text. SentencePiece would map the text `[CLS]` to the id of the symbol."""
    return self._text_ids.get(piece, self._model.unk_id())

  # Text to ids.

  def normalize(self, text: str) -> str:
    """Normalises a text by the rules of this tokenizer, for SentencePiece; WordPiece has its own rules."""
    return normalize(text, **self._rules)

  def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
    """Returns the ids of many texts, quickly.

    Args:
      texts: iterable of str.

    Returns:
      list of list[int], without [CLS] and [SEP].
    """
    if self._is_fast:
      return [x.ids for x in self._model.encode_batch([_characters(text) for text in texts], add_special_tokens=False)]
    # One thread: large corpora use several processes, and more threads than cores would be slower.
    batch = self._model.encode([normalize(text, **self._rules) for text in texts], out_type=int, num_threads=1)
    return [self._split_commas(ids) for ids in batch]

  def _split_commas(self, ids):
    table = self.resplit_ids
    # One test in C for the whole list; most lists have nothing to split.
    return ids if table.keys().isdisjoint(ids) else [j for i in ids for j in table.get(i, (i,))]

  def encode(self, text: str, *, specials: bool = False) -> list[int]:
    """Returns the ids of one text.

    Args:
      text: str.
      specials: convert `[CLS]`, `[SEP]` and `[MASK]` in the text to their ids, as for filling masks. Otherwise they are
        ordinary text, so that a user's text cannot change the structure of an input.

    Returns:
      list[int], without [CLS] and [SEP] at the ends.
    """
    if specials:
      return [
        i
        for part, _, special in self._split_specials(text)
        for i in (self.encode(part) if special is None else [special])
      ]
    if self._is_fast:
      return self._model.encode(_characters(text), add_special_tokens=False).ids
    return self._split_commas(self._model.encode(normalize(text, **self._rules), out_type=int))

  def encode_with_offsets(self, text: str, *, specials: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
    """Returns the ids of one text, and the characters each stands for.

    Args:
      text: str.
      specials: see `encode`.

    Returns:
      list[int], and a list of as many `(start, end)`: `text[start:end]` is the source of the piece in the original
      text. Spans exclude white space around a piece (a lone `▁` has an empty span), do not decrease, and cover all
      other characters except dropped ones; parts of one character (`½` is three pieces) share its span.
    """
    ids, spans = [], []
    parts = self._split_specials(text) if specials else [(text, 0, None)]
    for part, start, special in parts:
      if special is None:
        part_ids, part_spans = (self._fast_spans if self._is_fast else self._sentencepiece_spans)(part)
      else:
        part_ids, part_spans = [special], [(0, len(part))]
      ids += part_ids
      spans += [(start + a, start + b) for a, b in part_spans]
    return ids, spans

  def _split_specials(self, text):
    """Splits a text at special names; returns a list of (part, its start, its id or None for plain text)."""
    names = {"[CLS]": self.cls_id, "[SEP]": self.sep_id, "[MASK]": self.mask_id}
    parts = [
      (x.group(), x.start(), names.get(x.group()))
      for x in re.finditer(r"\[(?:CLS|SEP|MASK)\]|(?s:.)+?(?=\[(?:CLS|SEP|MASK)\]|\Z)", text)
    ]
    return parts or [(text, 0, None)]

  def _sentencepiece_spans(self, text):
    chars, spans = _normalize_with_spans(text, **self._rules)
    # The output of SentencePiece's normaliser for `chars`, and for each of its characters the index in `chars`.
    _, origin = self._model.normalize(chars, with_offsets=True)
    ids, result, position = [], [], 0
    for whole in self._model.encode(chars, out_type=str):
      for piece in self._resplit.get(self._id(whole), [whole]):
        ids.append(self._id(piece))
        first = position + (piece.startswith(_SPACE) and len(piece) > 1)
        position += len(piece)
        if piece == _SPACE:
          begin = end = min(origin[position], len(chars))
        else:
          begin, end = origin[first], max(origin[position], origin[position - 1] + 1)
        while end > begin and chars[end - 1].isspace():
          end -= 1
        while begin < end and chars[begin].isspace():
          begin += 1
        if begin < end:
          result.append((spans[begin][0], spans[end - 1][1]))
        else:
          at = spans[begin][0] if begin < len(spans) else (spans[-1][1] if spans else 0)
          result.append((at, at))
    return ids, result

  def _fast_spans(self, text):
    encoded = self._model.encode(_characters(text), add_special_tokens=False)
    return encoded.ids, encoded.offsets

  # Ids to text.

  def decode(self, ids: Iterable[int]) -> str:
    """Returns the text of ids without special pieces; unknown ones are ` ⁇ ` (SentencePiece) or `[UNK]` (WordPiece).

    Raises:
      UserError: an id is outside the vocabulary.
    """
    ids = [int(i) for i in ids]
    wrong = [i for i in ids if not 0 <= i < self.vocab_size]
    if wrong:
      raise UserError(f"id {wrong[0]} is outside the vocabulary {self.path}, which has ids 0 to {self.vocab_size - 1}")
    if self._is_fast:
      special = {self.pad_id, self.cls_id, self.sep_id, self.mask_id}
      return self._model.decode([i for i in ids if i not in special], skip_special_tokens=False)
    text = self._model.decode(ids)
    return unicodedata.normalize("NFC", text) if self.keep_accents else text  # Pieces hold letters and marks apart.


def _characters(text):
  """Replaces lone surrogates, which the `tokenizers` library refuses, by U+FFFD; offsets stay the same."""
  return text if text.isascii() else re.sub("[\ud800-\udfff]", "\ufffd", text)


def _load_sentencepiece(path):
  data = pathlib.Path(path).read_bytes()
  try:
    if not data:
      raise RuntimeError("it is empty")
    return sentencepiece.SentencePieceProcessor(model_proto=data)
  except RuntimeError as error:
    raise UserError(
      f"{path} is not a SentencePiece model ({error}); expected the .model file that `albert-jax vocab` or spm_train "
      "writes (a .vocab file beside it is only a list to read)"
    ) from None


def _load_wordpiece(tokenizer):
  import tokenizers

  try:
    lines = pathlib.Path(tokenizer.path).read_text("utf-8").rstrip("\n").split("\n")
  except UnicodeDecodeError as error:
    raise UserError(
      f"{tokenizer.path} is not a WordPiece list: expected UTF-8 text, one piece a line ({error})"
    ) from None
  vocabulary = {}
  for i, line in enumerate(lines):
    piece = line.strip()
    if piece in vocabulary or not piece:
      raise UserError(f"{tokenizer.path} line {i + 1}: expected a piece that is not yet in the list, got {line!r}")
    vocabulary[piece] = i
  if "[UNK]" not in vocabulary:
    raise UserError(f"{tokenizer.path} is not a WordPiece list: it has no line [UNK]")
  model = tokenizers.Tokenizer(
    tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=_MAX_WORDPIECE_CHARS)
  )
  # The original strips accents if and only if it lower-cases.
  model.normalizer = tokenizers.normalizers.BertNormalizer(
    lowercase=tokenizer.lower, strip_accents=tokenizer.lower and not tokenizer.keep_accents
  )
  model.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  model.decoder = tokenizers.decoders.WordPiece(prefix="##")
  return model


def _load_tokenizer_json(path):
  """Returns the tokenizer of a tokenizer.json. Special names in a text stay text, as with the other vocabularies."""
  import tokenizers

  try:
    model = tokenizers.Tokenizer.from_str(pathlib.Path(path).read_text("utf-8"))  # Whatever the file is called.
  except Exception as error:  # The library raises plain Exception for unreadable files.
    raise UserError(f"{path} is not a tokenizer.json that can be read: {message_lines(error)[0][:200]}") from None
  model.no_truncation()
  model.no_padding()
  model.encode_special_tokens = True
  return model
