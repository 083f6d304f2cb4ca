"""Plans a corpus as units of work: which part of which file, Parquet file or TFDS dataset one worker reads at a time.

The list of units depends on the corpus alone, so the results are the same for any number of processes.
"""

import codecs
import dataclasses
import itertools
import re

from albert_jax import files
from albert_jax.data import encodings
from albert_jax.data.corpus.opening import as_utf8, check_text, open_bytes, open_parquet, suffixes, tfds_source
from albert_jax.data.corpus.sentences import split_sentences
from albert_jax.errors import UserError

UNIT_BYTES = 16 << 20  # a unit of work: small enough to distribute, large enough for a shard
# Longer lines and documents are cut, so that memory stays bounded.
MAX_LINE_BYTES = 1 << 20
MAX_DOCUMENT_CHARS = 1 << 23
LAYOUTS = ("blank", "book", "doc")
_HEAD_BYTES = 1 << 16  # of a file, from which its layout is guessed


@dataclasses.dataclass(frozen=True)
class Reading:
  """How to read a corpus; every field is an option of the commands that read one.

  Attributes:
    layout: what separates documents in plain text. `blank`: a blank line (one paragraph or sentence a line). `book`: a
      file is a document, a blank line separates its paragraphs, which are wrapped over lines. `doc`: WikiExtractor's
      `<doc …>` and `</doc>`. `auto`: looked up in each file.
    text_field: the field of a JSON line, Parquet row or TFDS record that holds the text.
    tfds_split: the split of a TFDS dataset.
    tfds_dir: where TFDS datasets are; '' is TFDS' own default.
    encoding: of the text and JSON files that are not UTF-8, such as cp1252, or several with commas between; ''
      refuses such files.
  """

  layout: str = "auto"
  text_field: str = "text"
  tfds_split: str = "train"
  tfds_dir: str = ""
  encoding: str = ""


@dataclasses.dataclass(frozen=True)
class Span:
  """A part of a source: bytes of a plain file, rows of a Parquet file, records of a TFDS split; stop -1 is its end.

  `encoding` is that of a file which is not UTF-8, and which is one span.
  """

  source: str
  kind: str
  start: int = 0
  stop: int = -1
  encoding: str = ""


@dataclasses.dataclass(frozen=True)
class Unit:
  """What one worker reads at a time: spans in the order of the corpus, and about how many bytes they are."""

  spans: tuple[Span, ...]
  size: int


KINDS = {".txt": "text", "": "text", ".jsonl": "json", ".json": "json", ".ndjson": "json", ".parquet": "parquet"}


def _files(item):
  """Returns the files that one item of `--input` names: list of str, sorted; empty where it names none."""
  fs, path = files.filesystem(item)
  if files.is_pattern(item):
    matching = [files.filesystem(path)[1] for path in files.matching(item)]
    names = [name for name in matching if fs.isfile(name)]
  elif fs.isdir(path):
    names = [name for name in fs.find(path) if not re.search(r"/[._]", name[len(path.rstrip("/")) :])]  # no hidden ones
    names = [name for name in names if suffixes(name)[0] in KINDS]
  else:
    names = [path] if fs.isfile(path) else []
  return sorted(fs.unstrip_protocol(name) if "://" in item else name for name in names)


def plan(spec: str, reading: Reading, unit_bytes: int = UNIT_BYTES) -> list[Unit]:
  """Lists a corpus as units of work.

  Args:
    spec: str, a file, folder, glob or TFDS name (`wikipedia/20230601.en`), or several with commas between.
    reading: Reading.
    unit_bytes: about how many bytes of text a unit holds.

  Returns:
    list[Unit] in the order of the corpus; it depends on nothing but the corpus and the arguments.

  Raises:
    UserError: an item is neither a file nor a dataset, or there is no text at all.
  """
  spans = []
  reading = dataclasses.replace(reading, encoding=encodings.checked(reading.encoding))
  for item in files.split_list(spec, "--input"):
    paths = _files(item)
    for path in paths:
      spans += _plan_file(path, reading, unit_bytes)
    if not paths:
      if (
        files.is_pattern(item)
        or ("/" not in item.strip("./") and "." in item)
        or item.startswith((".", "/", "~"))
        or files.is_url(item)
      ):
        raise UserError(
          f"--input={item} matches no file; expected a text, .jsonl or .parquet file (or .gz, .xz, .zst of one), a "
          "folder, a quoted glob such as 'corpus/*.txt', or the name of a TFDS dataset"
        )
      spans += _plan_tfds(item, reading, unit_bytes)
  units, pending, size = [], [], 0
  for span, span_size in spans:
    if pending and size + span_size > unit_bytes:
      units.append(Unit(tuple(pending), size))
      pending, size = [], 0
    pending.append(span)
    size += span_size
  units += [Unit(tuple(pending), size)] if pending else []
  if not sum(unit.size for unit in units):
    raise UserError(f"--input={spec} holds no text: {len(spans)} files, all empty")
  return units


def _plan_file(path, reading, unit_bytes):
  """One file as a list of (Span, bytes)."""
  suffix, compression = suffixes(path)
  if suffix in (".csv", ".tsv"):
    raise UserError(
      f"{path} is a table, which is not read, because its other columns would become text; write its texts as JSON "
      'lines, {"text": …}, or as .txt'
    )
  kind = KINDS.get(suffix, "text")
  fs, name = files.filesystem(path)
  size = fs.size(name)
  if kind == "parquet":
    return _plan_parquet(path, size)
  encoding = ""
  if reading.encoding:
    with open_bytes(path) as file:
      encoding = encodings.of_file(path, file, reading.encoding)
  with open_bytes(path) as file:
    head = file.read(_HEAD_BYTES)
    check_text(path, head, encoding)
  if encoding:
    with open_bytes(path) as file:
      head = as_utf8(file, encoding).read(_HEAD_BYTES)
  elif not reading.encoding:
    encodings.refuse_other(path, head)
  if kind == "json" and head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
    raise UserError(
      f"{path} is one JSON list; expected a JSON object a line, as written by: jq -c '.[]' FILE > NEW.jsonl"
    )
  if kind == "text":
    kind = reading.layout if reading.layout != "auto" else _guess_layout(head, size)
  if compression or encoding or kind == "book" or size <= unit_bytes:
    return [(Span(path, kind, encoding=encoding), size)]
  starts = [0]
  with open_bytes(path) as file:
    for target in range(unit_bytes, size, unit_bytes):
      if target < starts[-1]:
        continue
      file.seek(target)
      _skip_line(file)  # the rest of some line
      while line := file.readline(MAX_LINE_BYTES):
        if not line.endswith(b"\n"):
          _skip_line(file)
        position = file.tell()
        if kind == "json" or (kind == "blank" and not line.strip()):
          break
        if kind == "doc" and line.startswith(b"<doc "):
          position -= len(line)
          break
      if line and starts[-1] < position < size:
        starts.append(position)
  return [(Span(path, kind, a, b), b - a) for a, b in zip(starts, [*starts[1:], size], strict=True)]


def _skip_line(file):
  """Reads to the end of a line, which may be too long for memory."""
  while (part := file.readline(MAX_LINE_BYTES)) and not part.endswith(b"\n"):
    pass


def _guess_layout(head, size):
  """`doc`, `book` or `blank` (see Reading), from the first bytes of a file of so many bytes.

  A file is a book in three cases. Lines wrapped at a fixed width: the first word of the next line does not fit on the
  line before, and most lines with a following line end in the middle of a sentence. Verse: most lines end in the middle
  of a sentence, many with a comma. Paragraphs of one line, each followed by a blank line: many are a single sentence,
  speech or a heading, which would be poor documents.
  """
  head = (head if b"\n" in head else head.replace(b"\r", b"\n")).decode("utf-8", "replace")
  if re.match(r"\ufeff?\s*<doc ", head):
    return "doc"
  lines = [line.strip() for line in head.split("\n")[:-1]]
  pairs = [(a, b) for a, b in itertools.pairwise(lines) if a and b]
  if len(pairs) >= 20:
    width = sorted(len(a) for a, _ in pairs)[int(0.9 * len(pairs))]
    full = _share(len(a) + len(b.split(maxsplit=1)[0]) >= width - 4 for a, b in pairs)
    broken = _share(_breaks_off(a) for a, _ in pairs)
    comma = _share(a[-1] in ",;" for a, _ in pairs)
    if width <= 120 and broken > 0.6 and (full > 0.5 or comma > 0.1):
      return "book"
  blocks = [list(block) for is_text, block in itertools.groupby(lines, bool) if is_text]
  # Text that exceeds the limit of a document consists of many documents.
  if len(blocks) >= 20 and _share(len(block) == 1 for block in blocks) > 0.9 and size <= MAX_DOCUMENT_CHARS:
    single = _share(len(split_sentences(block[0])) == 1 for block in blocks)
    loose = _share(block[0][0] in _BEGINS_SPEECH or block[0][-1] not in _ENDS_SENTENCE for block in blocks)
    if single > 0.15 and loose > 0.15:
      return "book"
  return "blank"


def _breaks_off(line):
  """Returns whether a line ends in the middle of a sentence. Thai and Lao do not mark the ends of sentences."""
  return line[-1] in ",;-" or (line[-1].isalnum() and not "\u0e00" <= line[-1] <= "\u0eff")


_BEGINS_SPEECH = "\"'“”„‚‘’»«‹›–—-「『"
_ENDS_SENTENCE = ".!?…。！？｡\"'”“’‘»«›‹)]」』）】》"


def _share(values):
  values = list(values)
  return sum(values) / len(values)


def _plan_parquet(path, size):
  """Returns a Parquet file as a list of (Span, bytes): a row group is the smallest part that can be read alone."""
  with open_parquet(path) as file:
    groups = file.metadata.num_row_groups
  return [(Span(path, "parquet", i, i + 1), size // groups) for i in range(groups)]


def _plan_tfds(name, reading, unit_bytes):
  source = tfds_source(name, reading.tfds_split, reading.tfds_dir)
  info = source.dataset_info
  if reading.text_field not in info.features:
    raise UserError(
      f"the TFDS dataset {name} has no field {reading.text_field!r}; expected one of {', '.join(info.features)}; "
      "choose with --text_field=NAME"
    )
  total = max(info.splits[reading.tfds_split].num_bytes, 1)
  step = max(1, unit_bytes * len(source) // total)
  ranges = [(i, min(i + step, len(source))) for i in range(0, len(source), step)]
  return [(Span(name, "tfds", a, b), total * (b - a) // len(source)) for a, b in ranges]
