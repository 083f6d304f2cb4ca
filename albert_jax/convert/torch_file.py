"""Files of `torch.save`, read and written without PyTorch. Reading executes nothing that a file holds.

Such a file is a zip archive: `data.pkl`, a pickle in which each tensor names a storage, and the storages' bytes. The
pickle is interpreted here, operation by operation. The only calls it can make are those of `_CALLS`.
"""

import os
import pickletools
import zipfile
from typing import Any, NamedTuple

import numpy as np

from albert_jax.errors import UserError

# PyTorch's storage classes and the numpy types of their bytes; bfloat16, which numpy lacks, is widened.
_KINDS = {
  "FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "BFloat16Storage": "<u2", "LongStorage": "<i8",
  "IntStorage": "<i4", "ShortStorage": "<i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
}  # fmt: skip
_STORAGE_OF = {np.dtype(kind): name for name, kind in _KINDS.items() if name != "BFloat16Storage"}
_MAX_PICKLE_BYTES = 1 << 28


class _Name(NamedTuple):
  """A class or function that a pickle names, as `module.name`. Nothing is imported."""

  name: str


class _Storage(NamedTuple):
  """Bytes of the archive: a storage class, the file under `data/`, and the count of elements."""

  kind: str
  key: str
  size: int


class _Tensor(NamedTuple):
  """A view of a storage. Offset and strides count elements."""

  storage: _Storage
  offset: int
  shape: tuple
  strides: tuple


class _Refused(Exception):
  """The pickle asks for something other than tensors and plain values."""


def read_tensors(file: str | os.PathLike, *keys: str) -> dict[str, np.ndarray]:
  """Reads the tensors of one dict of a file of `torch.save`.

  Args:
    file: a path.
    *keys: the keys of nested dicts that lead to the dict of tensors, such as "net"; none for the outermost one.

  Returns:
    {name: array}. bfloat16 becomes float32. Values that are no tensors are left out.

  Raises:
    UserError: the file is damaged, holds more than tensors and plain values, or lacks a key.
  """
  try:
    with zipfile.ZipFile(file) as archive:
      root = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
      if root is None:
        raise _Refused("it has no data.pkl")
      folder = root.removesuffix("data.pkl")
      if f"{folder}byteorder" in archive.namelist() and _stored(archive, f"{folder}byteorder") != b"little":
        raise _Refused("its numbers are big-endian")
      tree = _interpret(_stored(archive, root, _MAX_PICKLE_BYTES))
      for key in keys:
        if not isinstance(tree, dict) or key not in tree:
          listed = ", ".join(map(str, list(tree)[:8])) if isinstance(tree, dict) else "no dict"
          raise UserError(f"{file} has no {key!r}, but {listed}; expected a checkpoint with {'/'.join(keys)}")
        tree = tree[key]
      if not isinstance(tree, dict):
        raise _Refused("it holds no dict of tensors")
      return {name: _array(archive, folder, value) for name, value in tree.items() if isinstance(value, _Tensor)}
  except zipfile.BadZipFile:
    raise UserError(
      f"{file} is damaged, or was saved by a PyTorch before 1.6; open it with torch.load and save it again with "
      "torch.save"
    ) from None
  except _Refused as error:
    raise UserError(
      f"{file} is refused, and nothing in it was executed: {error}; expected a file of torch.save with tensors"
    ) from None
  except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, NotImplementedError) as error:
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    raise UserError(f"{file} is damaged: {reason:.100}") from None


def _stored(archive, name, limit=None) -> bytes:
  """Returns the bytes of an entry. PyTorch never compresses; a compressed entry could be larger than memory."""
  info = archive.getinfo(name)
  if info.compress_type != zipfile.ZIP_STORED or info.file_size > info.compress_size:
    raise _Refused(f"its {name} is compressed")
  if limit is not None and info.file_size > limit:
    raise _Refused(f"its {name} has {info.file_size:,} bytes")
  return archive.read(info)


def _array(archive, folder, tensor) -> np.ndarray:
  storage, kind = tensor.storage, np.dtype(_KINDS[tensor.storage.kind])
  data = _stored(archive, f"{folder}data/{storage.key}")
  if len(data) != storage.size * kind.itemsize:
    raise ValueError(f"storage {storage.key} has {len(data)} bytes, not those of {storage.size} elements")
  strides = [stride * kind.itemsize for stride in tensor.strides]
  # Raises ValueError or TypeError where the view reaches beyond the data.
  view = np.ndarray(tensor.shape, kind, data, tensor.offset * kind.itemsize, strides)
  if view.size > storage.size:
    raise ValueError(f"a tensor of {view.size} elements is a view of {storage.size}")
  if tensor.storage.kind == "BFloat16Storage":
    return (view.astype(np.uint32) << 16).view(np.float32)
  return np.ascontiguousarray(view).reshape(view.shape)


def _rebuild_tensor(storage, offset, shape, strides, *_):
  numbers = (offset, *shape, *strides)
  if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in numbers):
    raise _Refused("a tensor has no storage, or no proper shape")
  return _Tensor(storage, offset, tuple(shape), tuple(strides))


_CALLS: dict[str, Any] = {
  "collections.OrderedDict": lambda pairs=(): {_key(key): value for key, value in pairs},
  "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
  "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
  "torch.Size": tuple,
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE")
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _key(key):
  """Returns a key of a dict. A tuple is refused, because one of nested tuples can take forever to hash."""
  if not isinstance(key, str | int):
    raise _Refused(f"a dict has a {type(key).__name__} as key")
  return key


def _interpret(data: bytes) -> Any:
  """Returns the value of a pickle of `torch.save`, tensors as `_Tensor`."""
  stack, memo = [], {}
  marks = []  # the lengths of the stack at each MARK

  def popped():
    first = marks.pop()
    items = stack[first:]
    del stack[first:]
    return items

  def take(kind):
    if not isinstance(stack[-1], kind):
      raise _Refused("its operations are not those of torch.save")
    return stack[-1]

  for opcode, argument, _ in pickletools.genops(data):
    name = opcode.name
    if name in ("PROTO", "FRAME"):
      continue
    if name == "STOP":
      return stack.pop()
    if name in _VALUES:
      stack.append(argument)
    elif name in _CONSTANTS:
      stack.append(_CONSTANTS[name])
    elif name in _EMPTY:
      stack.append(_EMPTY[name]())
    elif name == "MARK":
      marks.append(len(stack))
    elif name in ("BINPUT", "LONG_BINPUT"):
      memo[argument] = stack[-1]
    elif name == "MEMOIZE":
      memo[len(memo)] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
      stack.append(memo[argument])
    elif name == "TUPLE":
      stack.append(tuple(popped()))
    elif name in _TUPLES:
      stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
    elif name in ("APPEND", "APPENDS"):
      items = popped() if name == "APPENDS" else [stack.pop()]
      take(list).extend(items)
    elif name in ("SETITEM", "SETITEMS"):
      items = popped() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
      take(dict).update((_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))
    elif name == "GLOBAL":
      stack.append(_Name(str(argument).replace(" ", ".")))
    elif name == "STACK_GLOBAL":
      attribute, module = stack.pop(), stack.pop()
      stack.append(_Name(f"{module}.{attribute}"))
    elif name == "BINPERSID":
      stack.append(_storage(stack.pop()))
    elif name == "REDUCE":
      arguments, function = stack.pop(), stack.pop()
      if not isinstance(function, _Name) or function.name not in _CALLS or not isinstance(arguments, tuple):
        raise _Refused(f"it calls {getattr(function, 'name', 'a value'):.60}")
      stack.append(_CALLS[function.name](*arguments))
    elif name == "BUILD":
      stack.pop()  # Attributes of a state dict (`_metadata`), which are not read.
      take(dict)
    else:
      raise _Refused(f"it has the operation {name}")
  raise ValueError("the pickle has no end")


def _storage(identifier):
  """Returns a storage of its persistent id: ("storage", class, key, device, number of elements)."""
  if isinstance(identifier, tuple) and len(identifier) == 5 and isinstance(identifier[1], _Name):
    _, name, key, _, size = identifier
    kind = name.name.removeprefix("torch.")
    if kind in _KINDS and isinstance(key, str) and type(size) is int:
      return _Storage(kind, key, size)
  raise _Refused("a storage is of an unknown kind")


# Writing.


def write(file: str | os.PathLike, tree: Any) -> None:
  """Writes what `torch.load(file, weights_only=True)` opens. Equal trees give equal files.

  Args:
    file: a path.
    tree: nested dicts, lists and tuples of numpy arrays, strings, numbers, booleans and None.

  Raises:
    TypeError: the tree holds another type.
  """
  storages = []
  pickled = b"\x80\x02" + b"".join(_pickled(tree, storages)) + b"."
  entries = {"data.pkl": pickled, "byteorder": b"little"}
  entries |= {f"data/{i}": array.tobytes() for i, array in enumerate(storages)} | {"version": b"3\n"}
  with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
    for name, data in entries.items():
      archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)


def _pickled(value, storages):
  """Yields the operations that make a value; appends its arrays to `storages`."""
  if value is None or isinstance(value, bool):
    yield {None: b"N", True: b"\x88", False: b"\x89"}[value]
  elif isinstance(value, int):
    yield (
      b"J" + value.to_bytes(4, "little", signed=True)
      if abs(value) < 2**31
      else (b"\x8a\x09" + value.to_bytes(9, "little", signed=True))
    )
  elif isinstance(value, float):
    yield b"G" + np.array(value, ">f8").tobytes()
  elif isinstance(value, str):
    text = value.encode()
    yield b"X" + len(text).to_bytes(4, "little") + text
  elif isinstance(value, dict):
    yield b"}("
    for pair in value.items():
      for item in pair:
        yield from _pickled(item, storages)
    yield b"u"
  elif isinstance(value, list | tuple):
    yield b"](" if isinstance(value, list) else b"("
    for item in value:
      yield from _pickled(item, storages)
    yield b"e" if isinstance(value, list) else b"t"
  elif isinstance(value, np.ndarray):
    array = np.ascontiguousarray(value).reshape(value.shape)
    storages.append(array)
    strides = tuple(stride // array.itemsize for stride in array.strides)
    yield b"ctorch._utils\n_rebuild_tensor_v2\n((" + b"".join(_pickled("storage", storages))
    yield b"ctorch\n" + _STORAGE_OF[array.dtype.newbyteorder("=")].encode() + b"\n"
    yield from _pickled(str(len(storages) - 1), storages)
    yield from _pickled("cpu", storages)
    yield from _pickled(array.size, storages)
    yield b"tQ" + b"".join(_pickled(0, storages))
    yield from _pickled(array.shape, storages)
    yield from _pickled(strides, storages)
    yield b"\x89ccollections\nOrderedDict\n)RtR"
  else:
    raise TypeError(f"torch_file cannot write a {type(value).__name__}")
