"""Reads untrusted JSON: within limits, without silent repairs, and with an error of one line for every fault."""

import collections
import functools
import itertools
import json
import math
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from albert_jax.errors import UserError

MAX_DEPTH = 64  # containers within each other; Python itself fails at a depth that depends on its caller
MAX_DIGITS = 100  # of a number, so that every whole number converts to a float
MAX_CONTAINERS = 1 << 21  # lists and objects of one value; a few bytes of text become a hundred of memory
MAX_VALUE_BYTES = 1 << 24  # of a value, which is a line of JSON lines
MAX_FILE_BYTES = 1 << 26  # of a whole file, such as a tokenizer.json
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
_KINDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number", bool: "a boolean"}


def loads(
  text: str | bytes,
  what: str,
  kind: type | tuple[type, ...] = (),
  *,
  nan_as_null: bool = False,
  max_bytes: int = MAX_VALUE_BYTES,
) -> Any:
  """Parses one JSON value.

  Args:
    text: the JSON, with or without a byte order mark; bytes are UTF-8.
    what: where the text is from, such as "FILE line 7"; errors begin with it.
    kind: the types that the value may have, such as dict; () for any.
    nan_as_null: read NaN, which pandas writes for a missing value, as None; else it is an error, as Infinity always is.
    max_bytes: the longest text.

  Returns:
    The value, of Python's own types. All of its numbers are finite, and all of its texts are valid Unicode.

  Raises:
    UserError: the text is not JSON, exceeds a limit, or holds another kind of value; in one line.
  """
  if len(text) > max_bytes:
    raise UserError(f"{what}: {len(text):,} characters of JSON are over the limit of {max_bytes:,}; split the value")
  if isinstance(text, bytes):
    try:
      text = text.decode("utf-8")
    except UnicodeDecodeError as error:
      raise UserError(f"{what} is not UTF-8 text ({error.reason} at byte {error.start + 1}); convert it") from None
  text = text.removeprefix("\ufeff")
  containers = text.count("[") + text.count("{")
  if containers > MAX_CONTAINERS:
    raise UserError(f"{what}: {containers:,} lists and objects exceed the limit of {MAX_CONTAINERS:,}; split it")
  try:
    value = _decoder(nan_as_null).decode(text)
    if containers > MAX_DEPTH:  # so the value is a container
      _check_depth(value)
    if _SURROGATE.search(text):
      json.dumps(value, ensure_ascii=False).encode()
  except json.JSONDecodeError as error:
    position = f"line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f"character {error.pos + 1}"
    raise UserError(f"{what} is not JSON: {error.msg.removesuffix(' at')} at {position}") from None
  except RecursionError:
    raise UserError(f"{what} is nested deeper than {MAX_DEPTH} levels; flatten the JSON") from None
  except UnicodeEncodeError as error:
    half = f"\\u{ord(error.object[error.start]):04x}"
    raise UserError(f"{what} holds half a surrogate pair ({half}), which is no character; write the pair") from None
  except ValueError as error:
    raise UserError(f"{what}: {error}") from None
  return expect(value, what, kind) if kind else value


def loads_or_none(text: str | bytes | None) -> Any:
  """Returns the JSON value in a text that this project wrote; None for no text, or a damaged one."""
  try:
    return None if text is None else json.loads(text)
  except (ValueError, RecursionError):
    return None


def sound_objects(text: str) -> Iterator[dict[str, Any]]:
  """Yields the objects of JSON lines; passes over damaged lines, such as the last one of a run that was killed."""
  for line in text.splitlines():
    try:
      value = loads(line, "the line", dict, nan_as_null=True)
    except UserError:
      continue
    yield value


def read(
  path: str | pathlib.Path,
  what: str = "JSON",
  kind: type | tuple[type, ...] = (),
  *,
  nan_as_null: bool = False,
  max_bytes: int = MAX_FILE_BYTES,
) -> Any:
  """Parses a file of this machine that holds one JSON value.

  Args:
    path: the file.
    what: what the file should hold, such as "a model's configuration"; errors name it.
    kind: as in `loads`.
    nan_as_null: as in `loads`.
    max_bytes: the largest file.

  Returns:
    The value.

  Raises:
    UserError: the file cannot be read, is too large, or as in `loads`; in one line.
  """
  path = pathlib.Path(path)
  try:
    with path.open("rb") as file:
      data = file.read(max_bytes + 1)
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror}); expected {what}") from None
  if len(data) > max_bytes:
    raise UserError(f"{path} is over the limit of {max_bytes:,} bytes; expected {what}")
  if not data.strip():
    raise UserError(f"{path} is empty; expected {what}")
  return loads(data, str(path), kind, nan_as_null=nan_as_null, max_bytes=max_bytes)


def read_object(path: str | pathlib.Path, what: str = "a JSON object", **options: Any) -> dict[str, Any]:
  """Parses a file that holds one JSON object.

  Args:
    path: the file.
    what: what the file should hold; errors name it.
    **options: further arguments of `read`.

  Returns:
    The object.

  Raises:
    UserError: as `read`, or the file holds another kind of value.
  """
  return read(path, what, dict, **options)


def expect(value: Any, what: str, kind: type | tuple[type, ...]) -> Any:
  """Checks the kind of a value. A boolean is no number here, and a whole number is also a float.

  Args:
    value: a parsed value.
    what: where it is from; the error begins with it.
    kind: the types that it may have.

  Returns:
    The value.

  Raises:
    UserError: the value has none of the types.
  """
  kinds = kind if isinstance(kind, tuple) else (kind,)
  accepted = (*kinds, int) if float in kinds else kinds
  if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in kinds):
    expected = " or ".join(_KINDS[type_] for type_ in kinds)
    raise UserError(f"{what}: expected {expected}, got {'null' if value is None else show(value)}")
  return value


def show(value: Any, length: int = 60) -> str:
  """Returns a value as short JSON for an error of one line."""
  text = json.dumps(value, default=str)
  return text if len(text) <= length else text[: length - 1] + "…"


@functools.cache
def _decoder(nan_as_null):
  return json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=_whole,
    parse_float=_float,
    parse_constant=functools.partial(_constant, nan_as_null),
  )


def _object(pairs):
  result = dict(pairs)
  if len(result) != len(pairs):
    [(name, count)] = collections.Counter(name for name, _ in pairs).most_common(1)
    raise ValueError(f"an object has the key {show(name)} {count} times; remove all but one")
  return result


def _whole(digits):
  if len(digits) > MAX_DIGITS:
    raise ValueError(f"a number of {len(digits):,} digits is over the limit of {MAX_DIGITS}")
  return int(digits)


def _float(digits):
  number = float(digits) if len(digits) <= MAX_DIGITS else math.inf
  if math.isinf(number):
    raise ValueError(f"the number {digits[:20]}{'…' * (len(digits) > 20)} is too large or too long")
  return number


def _constant(nan_as_null, name):
  if name == "NaN" and nan_as_null:
    return None
  raise ValueError(f"{name} is no JSON number; write null, or a finite number")


def _check_depth(value):
  level = [value]
  for _ in range(MAX_DEPTH):
    children = itertools.chain.from_iterable(node.values() if isinstance(node, dict) else node for node in level)
    level = [child for child in children if isinstance(child, list | dict)]
  if level:
    raise RecursionError
