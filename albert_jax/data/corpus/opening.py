"""Opens the sources of a corpus: files, plain, compressed (.gz, .xz, .zst) and Parquet, and TFDS datasets.

Every error of a decompressor or Parquet reader becomes a UserError of one line: the file has another format, is cut
short, is damaged, or exceeds a size limit.
"""

import contextlib
import functools
import gzip
import io
import lzma
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from albert_jax import files
from albert_jax.data import datasets, encodings
from albert_jax.errors import UserError, message_lines

MAX_VALUE_BYTES = 1 << 24  # of a JSON line or a value of Parquet; longer ones are left out
_XZ_MEMORY = 1 << 28  # memory limit of a decompressor; `xz -9` takes 65 MiB
# A row group is a bomb if its text column unpacks to more than this, at more than this rate; text reaches a rate of 20.
_BOMB_BYTES, _BOMB_RATE = 1 << 27, 100
_READ_BYTES = 1 << 16


class _XzReader(io.RawIOBase):
  """Decompresses .xz with a memory limit, which lzma.LZMAFile cannot set."""

  def __init__(self, file):
    self._file = file
    self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)

  def readable(self):
    return True

  def readinto(self, buffer):
    data = b""
    while not data:
      if self._stream.eof:  # Streams may follow each other, with zeros between them.
        rest = (self._stream.unused_data or self._file.read(_READ_BYTES)).lstrip(b"\0")
        while not rest and (block := self._file.read(_READ_BYTES)):
          rest = block.lstrip(b"\0")
        if not rest:
          return 0
        self._stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
        data = self._stream.decompress(rest, len(buffer))
        continue
      block = self._file.read(_READ_BYTES) if self._stream.needs_input else b""
      if not block and self._stream.needs_input:
        raise EOFError("the end of the stream is missing")
      data = self._stream.decompress(block, len(buffer))
    buffer[: len(data)] = data
    return len(data)


def _xz(file):
  return io.BufferedReader(_XzReader(file), _READ_BYTES)


def _zstd(file):
  import pyarrow  # TFDS requires it. Unlike `zstandard`, it detects a stream that was cut short.

  return io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd"), _READ_BYTES)


_SKIPPABLE = tuple(bytes([0x50 + i, 0x2A, 0x4D, 0x18]) for i in range(16))  # zstd frames that hold no data
# For each suffix the function that opens it, and the first bytes of such files.
COMPRESSIONS = {
  ".gz": (lambda file: gzip.GzipFile(fileobj=file), (b"\x1f\x8b",)),
  ".xz": (_xz, (b"\xfd7zXZ\0",)),
  ".zst": (_zstd, (b"\x28\xb5\x2f\xfd", *_SKIPPABLE)),
}
_PARQUET_MAGIC = b"PAR1"
# How files begin that are no text.
_MAGICS = {magic: kind for kind, (_, magics) in COMPRESSIONS.items() for magic in magics} | {
  _PARQUET_MAGIC: ".parquet", b"PK\x03\x04": ".zip", b"BZh": ".bz2", b"%PDF-": ".pdf", b"ustar": ".tar"
}  # fmt: skip
_TAR_MAGIC_AT = 257  # where a .tar file has it, after the name and facts of its first file
_MAX_NUL_SHARE = 0.01  # A text with more NUL bytes is UTF-16, or no text.


def suffixes(path: str) -> tuple[str, str]:
  """Returns the suffix of a file's format and that of its compression: `a/b.jsonl.gz` -> ('.jsonl', '.gz')."""
  name = path.rsplit("/", 1)[-1].lower()
  compression = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
  return pathlib.PurePosixPath(name.removesuffix(compression)).suffix, compression


@contextlib.contextmanager
def _errors(path, kind):
  """Converts errors of readers about bad contents into UserError; errors of the disk or the store pass."""
  import pyarrow

  try:
    yield
  except UserError:
    raise
  except (EOFError, zlib.error, lzma.LZMAError, UnicodeDecodeError, pyarrow.ArrowException, OSError) as error:
    # Arrow raises a plain OSError without a number for bad contents.
    if isinstance(error, OSError) and not (isinstance(error, gzip.BadGzipFile) or type(error) is OSError):
      raise
    if isinstance(error, OSError) and error.errno is not None:
      raise
    reason = message_lines(error)[0].rstrip(".")
    if isinstance(error, EOFError) or "truncated" in reason.lower():
      state = f"is cut short: it is no whole {kind} file"
    elif isinstance(error, lzma.LZMAError) and "memory" in reason.lower():
      state = f"needs more than {_XZ_MEMORY >> 20} MiB to unpack; compress it with xz -9 or less"
    else:
      state = f"is damaged: it is no whole {kind} file"
    raise UserError(f"{path} {state} ({reason}); copy or download it again") from error


def _check_start(path, file, kind, magics):
  """Refuses a file without the first bytes of its kind; leaves the position at the start."""
  start = file.read(max(map(len, magics)))
  file.seek(0)
  if not start:
    raise UserError(f"{path} is empty, which no {kind} file is; copy or download it again")
  if not start.startswith(magics):
    raise UserError(f"{path} is not a {kind} file, although its name says so; rename it, or download it again")


@contextlib.contextmanager
def open_bytes(path: str) -> Iterator[BinaryIO]:
  """Opens a file for reading; it is decompressed if its name ends in .gz, .xz or .zst.

  Args:
    path: a path or URL.

  Yields:
    The plain bytes, as a buffered binary file.

  Raises:
    UserError: the file is not what its name says, is cut short or is damaged; also while it is read in the block.
  """
  fs, name = files.filesystem(path)
  with fs.open(name, "rb") as raw:
    compression = suffixes(path)[1]
    if not compression:
      yield raw
      return
    opener, magics = COMPRESSIONS[compression]
    _check_start(path, raw, compression, magics)
    with _errors(path, compression), opener(raw) as file:
      yield file


def check_text(path: str, head: bytes, encoding: str = "") -> None:
  """Refuses a file of text that is none.

  Args:
    path: the file's name, for the message.
    head: its first bytes, decompressed.
    encoding: its encoding, if one was given.

  Raises:
    UserError: it is a file of another kind, or is not UTF-8 text and no encoding was given.
  """
  for magic, kind in _MAGICS.items():
    if head.startswith(magic, _TAR_MAGIC_AT if kind == ".tar" else 0):
      if kind in COMPRESSIONS or kind == ".parquet":
        raise UserError(f"{path} is a {kind} file, although its name does not say so; rename it, or unpack it")
      raise UserError(
        f"{path} is a {kind} file, which is not read; give its text, plain or as {', '.join(COMPRESSIONS)}"
      )
  if not encoding:
    encodings.refuse_marked(path, head, flag=True)
  if not encodings.is_wide(encoding) and head.count(b"\0") > 1 + _MAX_NUL_SHARE * len(head):
    raise UserError(
      f"{path} has {head.count(0):,} NUL bytes in its first {len(head):,}; it is no UTF-8 text, convert it; "
      "for UTF-16 without a byte order mark, add --encoding=utf-16-le"
    )


@contextlib.contextmanager
def open_parquet(path: str, column: str = "") -> Iterator[Any]:
  """Opens a Parquet file.

  Args:
    path: a path or URL.
    column: the column that will be read. Its values are kept as a dictionary, so that a value that is repeated a
      million times takes the memory of one.

  Yields:
    pyarrow.parquet.ParquetFile.

  Raises:
    UserError: as `open_bytes`, or there is no such column.
  """
  import pyarrow.parquet

  with open_bytes(path) as file:
    _check_start(path, file, ".parquet", (_PARQUET_MAGIC,))
    file.seek(0, io.SEEK_END)
    file.seek(max(0, file.tell() - len(_PARQUET_MAGIC)))
    if file.read() != _PARQUET_MAGIC:
      raise UserError(f"{path} is cut short: it is no whole .parquet file; copy or download it again")
    file.seek(0)
    with _errors(path, ".parquet"):
      schema = pyarrow.parquet.ParquetFile(file).metadata.schema
      names = [schema.column(i).path for i in range(len(schema))]
      if column and column not in names:
        raise UserError(
          f"{path} has no column {column!r}; expected one of {', '.join(names)[:300]}; choose with --text_field=NAME"
        )
      yield pyarrow.parquet.ParquetFile(
        file, read_dictionary=[column] if column else None, pre_buffer=False, page_checksum_verification=True
      )


def check_row_group(path: str, file: Any, group: int, column: str) -> None:
  """Refuses a row group whose column unpacks to a thousand times its size in the file.

  Args:
    path: the file's name, for the message.
    file: ParquetFile.
    group: the index of the row group.
    column: the column that will be read.

  Raises:
    UserError: the row group is too large.
  """
  chunks = file.metadata.row_group(group)
  for i in range(chunks.num_columns):
    chunk = chunks.column(i)
    packed, unpacked = max(1, chunk.total_compressed_size), chunk.total_uncompressed_size
    if chunk.path_in_schema.split(".")[0] == column and unpacked > max(_BOMB_BYTES, _BOMB_RATE * packed):
      raise UserError(
        f"{path}: column {column!r} of row group {group} takes {packed / 2**20:.1f} MiB and unpacks to "
        f"{unpacked / 2**20:.0f}, which no text does; write it again with smaller row groups if this is meant"
      )


def as_utf8(file: BinaryIO, encoding: str) -> BinaryIO:
  """Returns a file whose bytes are those of another file in UTF-8; encoding '': they already are."""
  return io.BufferedReader(encodings.Utf8Bytes(file, encoding), _READ_BYTES) if encoding else file


@functools.cache
def tfds_source(name: str, split: str, data_dir: str) -> Any:
  """Opens a split of a TFDS dataset, whose records are read by index.

  Args:
    name: str, such as wikipedia/20230601.en.
    split: str.
    data_dir: str, where TFDS datasets are; '' is TFDS' own default.

  Returns:
    its random-access data source.

  Raises:
    UserError: there is no such dataset or split, or its files cannot be read by index.
  """
  builder = datasets.tfds_builder(name, data_dir)
  if name.split("/")[0] == "python_docs":
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    # Standard output belongs to the command's JSON, and TFDS prints that it downloads, which is not so here.
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare()  # Made from the Python installation; does nothing the second time
  try:
    return builder.as_data_source(split)
  except Exception as error:
    reason = str(error).strip().split("\n")[0]
    raise UserError(
      f"the TFDS dataset {name}, split {split}, cannot be read by index ({reason}); prepare it once with: "
      f"tfds build {name} --file_format=array_record"
    ) from None
