"""TensorFlow V2 checkpoints ("tensor bundles"), read and written without TensorFlow.

A checkpoint `P` is `P.index`, a table of names in the format of leveldb, and `P.data-0000i-of-0000n`, the bytes of the
tensors one after the other. Sources: tensorflow/core/util/tensor_bundle/tensor_bundle.h, tensorflow/core/protobuf/
tensor_bundle.proto, leveldb's doc/table_format.md.
"""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterable

import google_crc32c
import ml_dtypes
import numpy as np

from albert_jax import files
from albert_jax.convert.protobuf import field, parse, to_varint, varint
from albert_jax.errors import UserError

# tensorflow/core/framework/types.proto. Other types (strings above all) have no array of fixed-size numbers.
_DTYPES = {
  1: np.dtype("<f4"),
  2: np.dtype("<f8"),
  3: np.dtype("<i4"),
  4: np.dtype("u1"),
  5: np.dtype("<i2"),
  6: np.dtype("i1"),
  8: np.dtype("<c8"),
  9: np.dtype("<i8"),
  10: np.dtype("?"),
  14: np.dtype(ml_dtypes.bfloat16),
  17: np.dtype("<u2"),
  18: np.dtype("<c16"),
  19: np.dtype("<f2"),
  22: np.dtype("<u4"),
  23: np.dtype("<u8"),
}
_NUMBERS = {dtype: number for number, dtype in _DTYPES.items()}

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER = 48  # two block handles, padded, and the magic number
_RESTART = 16  # every so many keys of a block one is written whole
_BLOCK = 256 * 1024  # bytes after which a block of the table is closed


class Checkpoint:
  """A checkpoint to read from, tensor by tensor.

  Attributes:
    prefix: path without `.index`.
    variables: {name: (dtype, shape)}, sorted by name. dtype is a numpy dtype, or a str that says why it cannot be read.
  """

  def __init__(self, path: str | os.PathLike):
    """Reads the table of names.

    Args:
      path: the prefix (`…/model.ckpt-100`), one of the files, or a folder that holds exactly one checkpoint.

    Raises:
      UserError: there are none or several checkpoints, or the table is damaged.
    """
    self.prefix = find(path)
    self._index = f"{self.prefix}.index"
    with _damage(self._index):
      self._shards, self._entries = _read_index(pathlib.Path(self._index).read_bytes())
    self.variables = {name: (entry["dtype"], entry["shape"]) for name, entry in self._entries.items()}

  def read(self, name: str) -> np.ndarray:
    """Reads one tensor.

    Args:
      name: a key of `variables`.

    Returns:
      The numpy array.

    Raises:
      UserError: there is no such tensor, its type or layout is not supported, or its bytes are missing or damaged
        (their checksum is verified). The message names the tensor and the file.
    """
    if name not in self._entries:
      raise UserError(f"{self._index} has no tensor {name!r}; it has {', '.join(self._entries)}")
    entry = self._entries[name]
    dtype, shape, size = entry["dtype"], entry["shape"], entry["size"]
    if isinstance(dtype, str):
      raise UserError(f"{self._index}: cannot read {name}: {dtype}")
    file = f"{self.prefix}.data-{entry['shard']:05d}-of-{self._shards:05d}"
    expected = dtype.itemsize * int(np.prod(shape, dtype=object))
    if size != expected:
      raise UserError(f"{self._index} is damaged: {name} {dtype} {list(shape)} takes {expected} bytes, not {size}")
    try:
      with open(file, "rb") as data:
        file_size = data.seek(0, os.SEEK_END)
        if entry["offset"] + size > file_size:
          raise UserError(
            f"{file} is cut off or another file: {name} ends at byte {entry['offset'] + size}, the file has {file_size}"
          )
        data.seek(entry["offset"])
        array = np.fromfile(data, np.uint8, size)
    except FileNotFoundError:
      raise UserError(f"no {file}, which holds {name}; a checkpoint is its .index and all its .data files") from None
    if _masked_crc(array) != entry["crc"]:
      raise UserError(f"{file} is damaged: the checksum of {name} (bytes {entry['offset']} and on) is wrong")
    return array.view(dtype).reshape(shape)


def read(path: str | os.PathLike, *, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
  """Reads a checkpoint.

  Args:
    path: see `Checkpoint`.
    names: which tensors; None: all.

  Returns:
    {name: array}.

  Raises:
    UserError: as for `Checkpoint`.
  """
  checkpoint = Checkpoint(path)
  return {name: checkpoint.read(name) for name in (checkpoint.variables if names is None else names)}


def find(path: str | os.PathLike) -> str:
  """Returns the prefix of the checkpoint at `path` (see `Checkpoint`)."""
  path = os.fspath(path)
  if os.path.isdir(path):
    indexes = sorted(str(x) for x in pathlib.Path(path).glob("*.index"))
    if not indexes:
      raise UserError(f"the folder {path} holds no TensorFlow checkpoint (no .index file)")
    if len(indexes) > 1:
      listed = "\n  ".join(x.removesuffix(".index") for x in indexes)
      raise UserError(f"the folder {path} holds {len(indexes)} checkpoints; name one of them:\n  {listed}")
    return indexes[0].removesuffix(".index")
  prefix = re.sub(r"(\.index|\.meta|\.data-\d{5}-of-\d{5})$", "", path)
  if not os.path.isfile(f"{prefix}.index"):
    raise UserError(f"no TensorFlow checkpoint at {path}: there is no {prefix}.index")
  return prefix


# The table of names.


@contextlib.contextmanager
def _damage(file):
  """Converts the errors of reading damaged bytes into one error."""
  try:
    yield
  except UserError as error:
    raise UserError(f"{file} {error}") from None
  except (IndexError, TypeError, ValueError, OverflowError) as error:
    raise UserError(f"{file} is damaged or not the index of a TensorFlow checkpoint ({error})") from None


def _read_index(data):
  """

  Returns:
    (number of shards, {name: {dtype, shape, shard, offset, size, crc}}).
  """
  if data[-8:] != _MAGIC:
    raise UserError("is not the index of a TensorFlow V2 checkpoint: the magic number at its end is missing")
  footer = data[-_FOOTER:]
  (start, size), at = _handle(footer, 0)
  _block(data, start, size)  # An empty block of statistics; reading it detects damage.
  (start, size), _ = _handle(footer, at)
  table = {}
  for _, value in _block(data, start, size):
    (start, size), _ = _handle(value, 0)
    table.update(_block(data, start, size))
  header = parse(table.pop(b"", b""))
  if header.get(2, [0]) != [0]:
    raise UserError("was written on a big-endian machine, which is not supported")
  shards = header.get(1, [0])[-1]
  if not 0 < shards < 100000:
    raise UserError("is damaged: its header has no number of shards")
  # Keys that begin with a zero byte hold the parts of tensors saved in slices.
  names = {key: value for key, value in table.items() if not key.startswith(b"\0")}
  return shards, {key.decode("utf-8"): _entry(key, value, shards) for key, value in sorted(names.items())}


def _entry(key, value, shards):
  fields = parse(value)
  shape = []
  for part in parse(fields.get(2, [b""])[-1]).get(2, []):
    size = parse(part).get(1, [0])[-1]
    if size >> 62:
      raise ValueError(f"{key!r} has a negative size")
    shape.append(size)
  number = fields.get(1, [0])[-1]
  dtype = _DTYPES.get(number, f"its type (number {number} in types.proto) is not one of numbers")
  if 7 in fields:
    dtype = "it was saved in slices (a partitioned variable); save it unpartitioned"
  shard = fields.get(3, [0])[-1]
  if not 0 <= shard < shards:
    raise ValueError(f"{key!r} names the shard {shard} of {shards}")
  return {
    "dtype": dtype,
    "shape": tuple(shape),
    "shard": shard,
    "offset": fields.get(4, [0])[-1],
    "size": fields.get(5, [0])[-1],
    "crc": fields.get(6, [0])[-1],
  }


def _handle(data, at):
  """Returns the position of a block: ((start, size), position after the handle)."""
  start, at = varint(data, at)
  size, at = varint(data, at)
  return (start, size), at


def _block(data, start, size):
  """Returns the (key, value) pairs of a block. A key is stored as a shared prefix of the one before, and a suffix."""
  if start + size + 5 > len(data):
    raise UserError("is cut off")
  kind = data[start + size]
  stored = int.from_bytes(data[start + size + 1 : start + size + 5], "little")
  if _masked_crc(data[start : start + size + 1]) != stored:
    raise UserError("is damaged: the checksum of a block is wrong")
  if kind != 0:
    raise UserError("is compressed, which TensorFlow's own checkpoints are not; load it there and save it again")
  block = data[start : start + size]
  restarts = int.from_bytes(block[-4:], "little")
  end = len(block) - 4 - 4 * restarts
  if end < 0:
    raise ValueError("a block has more restarts than bytes")
  pairs, key, at = [], b"", 0
  while at < end:
    shared, at = varint(block, at)
    rest, at = varint(block, at)
    length, at = varint(block, at)
    if shared > len(key) or at + rest + length > end:
      raise ValueError("a key does not fit its block")
    key = key[:shared] + block[at : at + rest]
    pairs.append((key, block[at + rest : at + rest + length]))
    at += rest + length
  return pairs


# Writing.


def write(prefix: str | os.PathLike, arrays: dict[str, np.ndarray], *, shards: int = 1) -> None:
  """Writes a checkpoint for TensorFlow: the index, the data, and the text file `checkpoint` that names it.

  Each file is written atomically, the index last: without an index there is no checkpoint.

  Args:
    prefix: path without `.index`; its folder must exist.
    arrays: {name: array}.
    shards: into how many data files the tensors are divided.

  Raises:
    UserError: `prefix` exists, or TensorFlow has no such type.
  """
  prefix = pathlib.Path(prefix)
  if pathlib.Path(f"{prefix}.index").exists():
    raise UserError(f"{prefix}.index exists already; choose another place")
  names = sorted(arrays, key=lambda name: name.encode())
  entries = [(b"", field(1, shards) + field(3, field(1, 1)))]  # the header: shards, little-endian, version 1
  for shard in range(shards):
    offset = 0
    with files.writing(f"{prefix}.data-{shard:05d}-of-{shards:05d}") as temporary, open(temporary, "wb") as file:
      for name in names[len(names) * shard // shards : len(names) * (shard + 1) // shards]:
        value = np.asarray(arrays[name])
        dtype = value.dtype.newbyteorder("<")
        if dtype not in _NUMBERS:
          raise UserError(f"{name} has type {value.dtype}, which has no place in a TensorFlow checkpoint")
        data = np.ascontiguousarray(value, dtype).tobytes()
        file.write(data)
        shape = b"".join(field(2, field(1, size)) for size in value.shape)
        entries.append(
          (
            name.encode(),
            field(1, _NUMBERS[dtype])
            + field(2, shape)
            + field(3, shard)
            + field(4, offset)
            + field(5, len(data))
            + bytes([6 << 3 | 5])
            + _masked_crc(data).to_bytes(4, "little"),
          )
        )
        offset += len(data)
  with files.writing(f"{prefix}.index") as temporary, open(temporary, "wb") as file:
    file.write(_index(entries))
  with files.writing(prefix.parent / "checkpoint") as temporary, open(temporary, "wb") as file:
    line = f'model_checkpoint_path: "{prefix.name}"\n'
    file.write((line + "all_" + line.replace("path", "paths")).encode())


def _index(entries):
  """Returns the bytes of a table of (key, value), sorted by key."""
  data, blocks, pending, size = b"", [], [], 0

  def close(pairs):
    nonlocal data
    content, previous, restarts = b"", b"", []
    for i, (key, value) in enumerate(pairs):
      shared = 0
      if i % _RESTART:
        shared = next((n for n in range(min(len(key), len(previous))) if key[n] != previous[n]), len(previous))
      else:
        restarts.append(len(content))
      content += to_varint(shared) + to_varint(len(key) - shared) + to_varint(len(value)) + key[shared:] + value
      previous = key
    for restart in restarts or [0]:
      content += restart.to_bytes(4, "little")
    content += max(1, len(restarts)).to_bytes(4, "little")
    handle = to_varint(len(data)) + to_varint(len(content))
    content += b"\0"  # not compressed
    data += content + _masked_crc(content).to_bytes(4, "little")
    return handle

  for key, value in entries:
    pending.append((key, value))
    size += len(key) + len(value)
    if size >= _BLOCK:
      blocks.append((key, close(pending)))
      pending, size = [], 0
  if pending:
    # Any key not before the block's last is valid; TensorFlow takes the shortest.
    blocks.append((_successor(pending[-1][0]), close(pending)))
  meta = close([])
  footer = (meta + close(blocks)).ljust(_FOOTER - len(_MAGIC), b"\0") + _MAGIC
  return data + footer


def _successor(key):
  """Returns the shortest key after `key` (leveldb's FindShortSuccessor)."""
  for i, byte in enumerate(key):
    if byte != 0xFF:
      return key[:i] + bytes([byte + 1])
  return key


def _masked_crc(data) -> int:
  """Returns the CRC-32C of bytes or an array, in the form that TensorFlow and leveldb store (crc32c.h, `Mask`)."""
  crc = google_crc32c.value(bytes(memoryview(data)))
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
