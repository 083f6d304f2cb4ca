"""Tagged words: CoNLL columns, TSV and JSON lines to sentences, and sentences to rows of pieces; no word is lost.

A sentence is a list of words with a tag each. Tags are `O` and `B-X I-X` (BIO), also `E-X S-X` (BIOES), or bare names
(IO, parts of speech). A fault of a file is repaired and counted, or is an error that names file and line.
"""

import collections
import dataclasses
import itertools
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from albert_jax import strict_json
from albert_jax.data.finetuning import cells, splits, tables, windows
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError

_SUFFIXES = ("", ".conll", ".conllu", ".txt", ".tsv", ".jsonl", ".json", ".parquet", ".bio", ".iob", ".iob2", ".bioes")
_PREFIXED = re.compile(r"[BIESLU]-.")
_LETTER_OF = {"L": "E", "U": "S"}  # BILOU says the same as BIOES.
_NUMBER, _SPAN = re.compile(r"\d+"), re.compile(r"\d+[-.]\d+")  # CoNLL-U's ids: a word; a range of words, an empty node
_DOCUMENT = "-DOCSTART-"
MAX_TAGS = 1000  # more are another column


@dataclasses.dataclass(frozen=True)
class Sentences:
  """Words and their tags.

  Attributes:
    words: the words of each sentence.
    tags: the tag of each word; None if the files hide the tags.
    notes: {what was skipped or is odd: how often}.
  """

  words: list[list[str]]
  tags: list[list[str]] | None
  notes: dict[str, int]

  def __len__(self) -> int:
    return len(self.words)

  def labels(self) -> list[str]:
    """Returns the different tags, sorted."""
    return sorted(set(itertools.chain(*(self.tags or ()))))


# Files.


def split_files(dataset: str | pathlib.Path, split: str) -> list[pathlib.Path]:
  """Finds the files of a split, see `splits.find`.

  Raises:
    UserError: there are none.
  """
  paths = splits.find(dataset, split, _SUFFIXES)
  if paths is None:
    raise UserError(f"data.dataset={str(dataset)!r} is no folder with files of tagged words; give one, or a file")
  return paths


def read(
  paths: Sequence[str | pathlib.Path],
  token_column: int = 0,
  tag_column: int = -1,
  token_field: str = "tokens",
  tag_field: str = "tags",
  *,
  may_hide: bool = False,
) -> Sentences:
  """Reads files of tagged sentences: a JSON object a line, or a word a line; the first line shows which.

  A file that ends in .json may also be one list of objects. The columns of a Parquet file are the lists.

  Columns are separated by tabs, or by blanks and tabs in a file whose first word has no tab behind it. A blank line
  ends a sentence, as does a -DOCSTART- line. A line that begins with # is a comment if it stands before a sentence and
  has other columns, or another tag, than words have: `#` is also a word. In CoNLL-U, ranges of words (1-2) and empty
  nodes (1.1) are skipped.

  Args:
    paths: the files.
    token_column: the column with the words, from 0, or from -1 at the end.
    tag_column: the column with the tags.
    token_field: the list of words in a JSON object.
    tag_field: the list of tags.
    may_hide: whether the files may have words alone, as published test data: one column, objects without tags, or
      tags that are all missing, -1 or _.

  Raises:
    UserError: a file has no tagged sentences; names file and line.
  """
  words, tags = [], []
  notes: collections.Counter[str] = collections.Counter()
  for path in paths:
    suffix = pathlib.Path(path).suffix.lower()
    lines = ["{"] if suffix == ".parquet" else splits.read_text(path).split("\n")
    is_whole = suffix in (".json", ".parquet")
    if next((line for line in lines if line.strip()), "").lstrip().startswith(("{", "[") if is_whole else "{"):
      rows = tables.read_values(path) if is_whole else _json_lines(path, lines)
      pairs = _json_sentences(path, rows, token_field, tag_field, notes, may_hide)
    else:
      pairs = _column_sentences(path, lines, token_column, tag_column, notes, may_hide)
    for sentence_words, sentence_tags in pairs:
      words.append(sentence_words)
      tags.append(sentence_tags)
  if words and not any(tags):
    return Sentences(words, None, dict(notes))
  if not all(tags):
    raise UserError(f"{', '.join(map(str, paths[:3]))}: some sentences have tags, others have none; give all or none")
  sentences = Sentences(words, tags, dict(notes))
  _check_tags(sentences, paths)
  return sentences


def _column_sentences(path, lines, token_column, tag_column, notes, may_hide):
  blanks = re.compile("[ \t]+")
  lines = [line if line.strip(" \t") else "" for line in lines]
  has_tabs = "\t" in next((line for line in lines if line and not line.startswith(("#", _DOCUMENT))), "")
  rows = [line.split("\t") if has_tabs else blanks.split(line.strip(" \t")) for line in lines]
  plain = [row for line, row in zip(lines, rows, strict=True) if line and not line.startswith(("#", _DOCUMENT))]
  if not plain and any(line.startswith("#") for line in lines):
    raise UserError(
      f"{path}: every line begins with #, as comments do; expected a word and its tag a line, and a blank line between "
      "sentences"
    )
  width = len(plain[0]) if plain else 0
  hidden = may_hide and width == 1
  token_column, tag_column = (0, 0) if hidden else (token_column, tag_column)
  for name, column in {"token_column": token_column, "tag_column": tag_column}.items():
    if plain and not -width <= column < width:
      raise UserError(
        f"{path}: lines have {width} columns, data.{name}={column} is none of them; "
        f"try --config.data.{name}={0 if name == 'token_column' else width - 1}"
      )
  if plain and token_column % width == tag_column % width and not hidden:
    raise UserError(
      f"{path}: column {tag_column} of {width} would be both word and tag; expected a word and its tag a line, in the "
      "columns data.token_column and data.tag_column"
    )
  hidden |= may_hide and all(len(row) == width and _is_hidden(row[tag_column]) for row in plain)
  known = {row[tag_column] for row in plain if len(row) == width}
  is_conllu = token_column % max(width, 1) != 0 and all(_NUMBER.fullmatch(r[0]) or _SPAN.fullmatch(r[0]) for r in plain)
  words, tags = [], []
  for number, (line, row) in enumerate(zip(lines, rows, strict=True), 1):
    is_document = _DOCUMENT in (*line.split(maxsplit=1)[:1], *row[token_column:][:1])
    if not line or is_document:
      if is_document:
        notes[f"{_DOCUMENT} lines skipped"] += 1
      if words:
        yield words, tags
      words, tags = [], []
      continue
    if line.startswith("#") and not words and (len(row) != width or row[tag_column] not in known):
      notes["comment lines skipped"] += 1
      continue
    if is_conllu and _SPAN.fullmatch(row[0]):
      notes["ranges of words and empty nodes of CoNLL-U skipped"] += 1
      continue
    if len(row) != width:
      raise UserError(
        f"{path}:{number} has {len(row)} columns where the first word has {width}: {line[:100]!r}; "
        "every word needs a line with all columns"
      )
    # Other white space, such as a no-break space, may be a word.
    word, tag = row[token_column].strip(" ") or row[token_column], row[tag_column].strip()
    tag = "" if cells.is_missing(tag) and not hidden else tag
    if not tag or not word:
      raise UserError(
        f"{path}:{number} has an empty {'word' if tag else 'tag'} in column "
        f"{token_column if tag else tag_column}: {line[:100]!r}; fill it in, or give the right column, such as "
        f"--config.data.{'token_column=0' if tag else 'tag_column=1'}"
      )
    words.append(word)
    if not hidden:
      tags.append(tag)
  if words:
    yield words, tags


def _is_hidden(tag):
  return cells.is_hidden(tag) or tag == "_"  # CoNLL-U's sign for an empty field


def _hides(tags):
  return cells.is_hidden(tags) or (isinstance(tags, list) and bool(tags) and all(map(_is_hidden, tags)))


def _json_lines(path, lines):
  for number, line in enumerate(lines, 1):
    if line.strip():
      yield number, strict_json.loads(line, f"{path}:{number}", dict)


def _json_sentences(path, rows, token_field, tag_field, notes, may_hide):
  for number, row in rows:
    strict_json.expect(row, f"{path}:{number}", dict)
    hidden = may_hide and _hides(row.get(tag_field))
    lists = [name for name, value in row.items() if isinstance(value, list)]
    row |= {tag_field: []} if hidden else {}
    for option, name in {"token_field": token_field, "tag_field": tag_field}.items():
      if not isinstance(row.get(name), list):
        raise UserError(
          f"{path}:{number} has no list {name!r} (its lists are {', '.join(lists)[:200] or 'none'}); expected "
          f'{{"tokens": ["I", …], "tags": ["O", …]}}, or give its name with --config.data.{option}=NAME'
        )
    words, tags = row[token_field], row[tag_field]
    if len(words) != len(tags) and not hidden:
      raise UserError(f"{path}:{number} has {len(words)} words and {len(tags)} tags; every word needs one tag")
    wrong = [x for x in words if not isinstance(x, str) or not x]
    wrong += [x for x in tags if not isinstance(x, str) or cells.is_missing(x)]
    if wrong:
      raise UserError(
        f"{path}:{number} has {strict_json.show(wrong[0], 40)} where a word or a tag should be; both are texts"
      )
    if words == [_DOCUMENT]:
      notes[f"{_DOCUMENT} lines skipped"] += 1
    elif words:
      # A tab or a line's end in a word would break the columns of predictions.conll.
      yield [re.sub(r"[\t\r\n]", " ", word) for word in words], [tag.strip() for tag in tags]


def _check_tags(sentences, paths):
  """Errors for what cannot be tags, and a note on entities that begin with I-."""
  where = splits.named(paths)
  if not len(sentences):
    raise UserError(
      f"{where}: no sentences in it; expected a word and its tag a line, and a blank line between sentences"
    )
  labels = sentences.labels()
  if all(map(_is_hidden, labels)):
    raise UserError(f"{where}: every tag is {labels[0]!r}, which hides the tags; give a file that has them")
  if len(labels) > MAX_TAGS:
    raise UserError(
      f"{where}: {len(labels):,} different tags, such as {labels[0]!r}; that is another column, give that of the "
      "tags with --config.data.tag_column=N"
    )
  bare = [label for label in labels if label != "O" and not _PREFIXED.match(label)]
  if bare and len(bare) < len([label for label in labels if label != "O"]):
    raise UserError(
      f"{where}: {bare[0]!r} is neither O nor does it begin with B-, I-, E- or S- as other tags there do; correct it"
    )
  if any(label[0] in "BSU" for label in labels if _PREFIXED.match(label)):
    odd = sum(
      parts(tag)[0] in "IE" and (parts(before)[0] in "OES" or parts(before)[1] != parts(tag)[1])
      for tags in sentences.tags
      for before, tag in itertools.pairwise(["O", *tags])
    )
    if odd:
      sentences.notes["entities that begin with I- or E- (read as if with B-, as conlleval does)"] = odd


def parts(tag: str) -> tuple[str, str]:
  """Splits a tag into (one of O B I E S, type): `O` is ("O", ""), a bare name ("I", name), L and U are E and S."""
  if tag == "O":
    return "O", ""
  return (_LETTER_OF.get(tag[0], tag[0]), tag[2:]) if _PREFIXED.match(tag) else ("I", tag)


# Sentences to rows.


def encode(
  words: Sequence[Sequence[str]],
  tokenizer: Tokenizer,
  seq_length: int,
  tags: Sequence[Sequence[str]] | None = None,
  labels: Sequence[str] = (),
) -> tuple[windows.Encoded, dict[str, int]]:
  """Encodes sentences as rows `[CLS] … [SEP]`, a long sentence as several rows that overlap.

  A word that becomes no piece (a lone combining mark) is the unknown piece, so that every word has a tag. A word with
  more pieces than half a row is cut.

  Args:
    words: the words of each sentence; each is encoded by itself.
    tokenizer: the tokenizer.
    seq_length: the longest row.
    tags: the tag of each word, or None.
    labels: the tags that have numbers, in their order.

  Returns:
    The rows, whose items are words and whose labels are the numbers of tags (-1 for tags without one); and {what had to
    be done: how often}.

  Raises:
    UserError: seq_length has no room for words.
  """
  longest = windows.longest_item(seq_length - 2)
  if longest < 1:
    raise UserError(f"data.seq_length={seq_length} leaves no room for words; give 128 or so")
  distinct = list(dict.fromkeys(itertools.chain(*words)))
  pieces_of = dict(zip(distinct, tokenizer.encode_batch(distinct), strict=True))
  empty = {word for word, pieces in pieces_of.items() if not pieces}
  cut = {word for word, pieces in pieces_of.items() if len(pieces) > longest}
  pieces_of |= {word: [tokenizer.unk_id] for word in empty} | {word: pieces_of[word][:longest] for word in cut}
  numbers = {label: i for i, label in enumerate(labels)}
  encoded = windows.encode(
    [[pieces_of[word] for word in sentence] for sentence in words],
    None if tags is None else [[numbers.get(tag, -1) for tag in sentence] for sentence in tags],
    seq_length, begin=[tokenizer.cls_id], end=[tokenizer.sep_id], pad_id=tokenizer.pad_id,
  )  # fmt: skip
  notes = {
    "words without a piece of their own (given the unknown one)": sum(w in empty for s in words for w in s),
    f"words cut to {longest} pieces": sum(w in cut for s in words for w in s),
    f"sentences longer than {seq_length} pieces (in overlapping rows)": sum(np.bincount(encoded.sequence) > 1),
  }
  return encoded, {what: number for what, number in notes.items() if number}
