"""Tagged words: CoNLL columns, TSV and JSON lines to sentences, and sentences to rows of pieces, nothing lost.

A sentence is a list of words with a tag each. Tags are `O` and `B-X I-X` (BIO), also `E-X S-X` (BIOES), or bare names
(IO, parts of speech). Bad input is repaired and counted, or it is one error that names file and line.
"""

import dataclasses
import glob
import itertools
import json
import pathlib
import re

import numpy as np

from albert_jax.data.finetuning import tables, windows
from albert_jax.errors import UserError

# What a split may be called in a folder; a name is looked up as it is, with an ending, and as an ending (eng.testa).
_NAMES = {**tables.SPLITS, "validation": (*tables.SPLITS["validation"], "testa"), "test": ("test", "testb")}
_ENDINGS = ("", ".conll", ".txt", ".tsv", ".jsonl", ".json", ".bio", ".iob", ".iob2", ".bioes")
_PREFIXED = re.compile(r"[BIESLU]-.")
_LETTER_OF = {"L": "E", "U": "S"}  # BILOU says the same as BIOES.
MAX_TAGS = 1000  # more are not tags but another column


@dataclasses.dataclass(frozen=True)
class Sentences:
  """words[i][j] has the tag tags[i][j]. notes: {what was skipped or is odd: how often}."""

  words: list[list[str]]
  tags: list[list[str]]
  notes: dict[str, int]

  def __len__(self):
    return len(self.words)

  def labels(self):
    """The tags there are, sorted."""
    return sorted(set(itertools.chain(*self.tags)))


# Files.


def split_files(dataset, split):
  """The files of a split. Args: dataset: a folder or ''. split: names, paths or patterns, separated by commas.

  In a folder, `train` also means train.conll, train.txt, …, eng.train; `validation` also dev, valid or testa.
  Raises: UserError that lists what there is.
  """
  base, found = pathlib.Path(dataset).expanduser(), []
  names = [part.strip() for part in split.split(",") if part.strip()]
  if not names or not (dataset or all(glob.glob(name) for name in names)):
    raise UserError(
      f"data.dataset={str(dataset)!r} and split {split!r} name no files; give a folder, as --config.data.dataset=DIR"
    )
  for name in names:
    patterns = [alias + ending for alias in _NAMES.get(name, (name,)) for ending in _ENDINGS]
    patterns += [f"*.{alias}" for alias in _NAMES.get(name, (name,))]
    for pattern in patterns:
      # A path of its own is not looked for in the folder; a folder's name may look like a pattern and is none.
      where = pattern if not dataset or pathlib.Path(pattern).is_absolute() else f"{glob.escape(str(base))}/{pattern}"
      files = sorted(path for path in glob.glob(where) if pathlib.Path(path).is_file())
      if files:
        break
    else:
      there = sorted(path.name for path in base.iterdir()) if base.is_dir() else []
      what = f"there are {', '.join(there[:12])}{', …' if len(there) > 12 else ''}" if there else "that is no folder"
      raise UserError(
        f"no file for split {name!r} in data.dataset={str(dataset)!r}: {what}; give names or patterns, such as "
        "--config.data.split=train.conll or --config.data.validation_split='[6-9]*.tsv'"
      )
    found += files
  return tuple(dict.fromkeys(found))


def read(paths, token_column=0, tag_column=-1, token_field="tokens", tag_field="tags") -> Sentences:
  """Reads files of tagged sentences, a JSON object a line or a word a line; which of both is seen by the first line.

  Args:
    paths: files. token_column, tag_column: which columns, from 0, or from -1 at the end.
    token_field, tag_field: the lists of a JSON object.

  Columns are separated by tabs, or by white space in a file whose first line has no tab. A blank line ends a sentence,
  as does a -DOCSTART- line. A line that begins with # is a comment where it stands before a sentence and has other
  columns, or another tag, than words have: `#` is also a word.
  Raises: UserError naming file and line.
  """
  words, tags, notes = [], [], {}
  for path in paths:
    lines = read_lines(path)
    begin = next((line for line in lines if line.strip()), "")
    if begin.lstrip().startswith("{"):
      found = _json_sentences(path, lines, token_field, tag_field)
    else:
      found = _column_sentences(path, lines, token_column, tag_column, notes)
    for sentence_words, sentence_tags in found:
      words.append(sentence_words)
      tags.append(sentence_tags)
  sentences = Sentences(words, tags, notes)
  _check_tags(sentences, paths)
  return sentences


def read_lines(path):
  """The lines of a UTF-8 file without their ends, CRLF and a byte order mark being no part of them."""
  try:
    with open(path, encoding="utf-8-sig") as file:  # Its universal newlines leave U+2028 and U+0085 alone, as wanted.
      text = file.read()
  except UnicodeDecodeError as error:
    raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it first") from None
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror}") from None
  if "\0" in text:
    line = text.count("\n", 0, text.index("\0")) + 1
    raise UserError(f"{path}:{line} holds a NUL character, so it is damaged or not UTF-8; convert or repair it first")
  return text.removesuffix("\n").split("\n")


def _column_sentences(path, lines, token_column, tag_column, notes):
  separator = None  # white space
  rows = []
  for number, line in enumerate(lines, 1):
    line = line.strip(" \t") if not line.strip(" \t") else line
    if line and separator is None and not rows and "\t" in line:
      separator = "\t"
    rows.append((number, line, line.split("\t") if separator else re.split("[ \t]+", line.strip(" \t"))))
  plain = [columns for _, line, columns in rows if line and not line.startswith("#")]
  plain = plain or [columns for _, line, columns in rows if line]
  width = len(plain[0]) if plain else 0
  for name, column in {"token_column": token_column, "tag_column": tag_column}.items():
    if plain and not -width <= column < width:
      raise UserError(
        f"{path}: lines have {width} columns, data.{name}={column} is none of them; "
        f"try --config.data.{name}={0 if name == 'token_column' else width - 1}"
      )
  known = {columns[tag_column] for columns in plain if len(columns) == width}

  def count(what):
    notes[what] = notes.get(what, 0) + 1

  words, tags = [], []
  for number, line, columns in rows:
    if not line or columns[token_column if -len(columns) <= token_column < len(columns) else 0] == "-DOCSTART-":
      if line:
        count("-DOCSTART- lines skipped")
      if words:
        yield words, tags
      words, tags = [], []
      continue
    if line.startswith("#") and not words and (len(columns) != width or columns[tag_column] not in known):
      count("comment lines skipped")
      continue
    if len(columns) != width:
      raise UserError(
        f"{path}:{number} has {len(columns)} columns where the first word has {width}: {line!r}; "
        "every word needs a line with all columns"
      )
    word, tag = columns[token_column].strip(), columns[tag_column].strip()
    if not tag or not word:
      raise UserError(
        f"{path}:{number} has an empty {'word' if tag else 'tag'} in column "
        f"{token_column if tag else tag_column}: {line!r}; fill it in, or give the right column, such as "
        f"--config.data.{'token_column=0' if tag else 'tag_column=1'}"
      )
    words.append(word)
    tags.append(tag)
  if words:
    yield words, tags


def _json_sentences(path, lines, token_field, tag_field):
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except ValueError as error:
      raise UserError(f"{path}:{number} is not JSON: {error}") from None
    for option, name in {"token_field": token_field, "tag_field": tag_field}.items():
      if not isinstance(row, dict) or not isinstance(row.get(name), list):
        there = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise UserError(
          f"{path}:{number} has no list {name!r} (it has {there}); expected "
          f'{{"tokens": ["I", …], "tags": ["O", …]}}, or give its name with --config.data.{option}=NAME'
        )
    words, tags = row[token_field], row[tag_field]
    if len(words) != len(tags):
      raise UserError(f"{path}:{number} has {len(words)} words and {len(tags)} tags; every word needs one tag")
    wrong = [x for x in (*words, *tags) if not isinstance(x, str) or not x.strip()]
    if wrong:
      raise UserError(f"{path}:{number} has {wrong[0]!r} where a word or a tag should be; both are non-empty strings")
    if words:
      yield words, [tag.strip() for tag in tags]


def _check_tags(sentences, paths):
  """Errors for what cannot be tags, and a note on entities that begin with I-."""
  where = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
  if not len(sentences):
    raise UserError(
      f"{where}: no sentences in it; expected a word and its tag a line, and a blank line between sentences"
    )
  labels = sentences.labels()
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


def parts(tag):
  """A tag as (one of O B I E S, type): `O` is ("O", ""), a bare name ("I", name), BILOU's L and U are E and S."""
  if tag == "O":
    return "O", ""
  return (_LETTER_OF.get(tag[0], tag[0]), tag[2:]) if _PREFIXED.match(tag) else ("I", tag)


# Sentences to rows.


def encode(words, tokenizer, seq_length, tags=None, labels=()):
  """Sentences as rows `[CLS] … [SEP]`, a long sentence as several that overlap.

  Args:
    words: list of lists of str, each word cut into pieces by itself. seq_length: the longest row.
    tags: likewise, or None. labels: the tags that have numbers, in their order.

  Returns: windows.Encoded, its items being words and its labels the numbers of tags (-1 for those that have none); and
    {what had to be done: how often}. A word that becomes no piece (a lone combining mark) is the unknown piece, so that
    every word has a tag. A word of more than half a row is cut.
  Raises: UserError for a seq_length that holds no words.
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
