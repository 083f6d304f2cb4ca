"""The meaning of a cell of a labelled file: a label, several labels, a number, or nothing.

The same label has the same name in every format: JSON's true and a table's True are "true", and the whole number 1 is
"1", also where a format has only fractions for it.
"""

import collections
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from albert_jax import strict_json
from albert_jax.errors import UserError

_MISSING = ("", "nan", "null", "<na>")  # what pandas and JSON write for a missing value
_LARGEST = 3.4e38  # of float32
_WHOLE = re.compile(r"(-?\d{1,15})\.0+")  # how pandas writes whole numbers beside missing ones
_BRACKETS = {"[": "]", "(": ")", "{": "}"}
_BOOLEANS = {"True": "true", "TRUE": "true", "False": "false", "FALSE": "false"}


def is_missing(value: Any) -> bool:
  """Returns whether a cell holds no value: null, NaN, or a text that stands for it (see _MISSING)."""
  if isinstance(value, float):
    return math.isnan(value)
  return value is None or (isinstance(value, str) and value.strip().lower() in _MISSING)


def is_hidden(value: Any) -> bool:
  """Returns whether a cell hides its label, as in published test data: it is missing, or -1."""
  return is_missing(value) or str(value).strip() in ("-1", "-1.0")


def are_hidden(values: Sequence[Any], labels: Iterable[str] = ()) -> bool:
  """Returns whether a split hides all of its labels.

  Args:
    values: the cells of the label's column.
    labels: the known labels; if "-1" is among them it is a label.
  """
  return bool(values) and all(map(is_missing if "-1" in labels else is_hidden, values))


def text_of(value: Any) -> str | None:
  """Returns the text in a cell: '' for a missing value, None for a value that is neither a text nor a number."""
  if is_missing(value):
    return ""
  return None if isinstance(value, bool) or not isinstance(value, str | int | float) else str(value)


def label(value: Any, where: str) -> str:
  """Returns the name of the label in a cell.

  Args:
    value: a cell that is not missing.
    where: the row, for errors.

  Raises:
    UserError: the cell holds a list or an object, also as JSON in a text.
  """
  value = parsed(value)
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  if not isinstance(value, str | int | float):
    raise UserError(f"{where}: the label is {strict_json.show(value)}; expected a text or a number")
  text = unicodedata.normalize("NFC", str(value)).strip()
  if whole := _WHOLE.fullmatch(text):
    text = str(int(whole[1]))
  return _BOOLEANS.get(text, text)


def alike(names: Iterable[str]) -> list[list[str]]:
  """Returns groups of names that differ only in case, white space or invisible characters."""
  groups = collections.defaultdict(list)
  for name in names:
    visible = (char for char in unicodedata.normalize("NFKC", name).casefold() if unicodedata.category(char) != "Cf")
    groups["".join("".join(visible).split())].append(name)
  return [group for group in groups.values() if len(group) > 1]


def parsed(value: Any) -> Any:
  """Parses a cell with a JSON list or object; returns any other value unchanged."""
  text = value.strip() if isinstance(value, str) else ""
  if text[:1] in ("[", "{") and text[-1:] == _BRACKETS[text[:1]]:
    try:
      return strict_json.loads(text, "the cell", (list, dict))
    except UserError:
      pass
  return value


def labels(value: Any, separator: str, where: str) -> list[str]:
  """Returns the names of the labels in a cell.

  Args:
    value: a list, or a text: a JSON list, or names with `separator` between.
    separator: as data.label_separator.
    where: the row, for errors.

  Raises:
    UserError: the cell looks like a JSON list and is none, or the list holds anything but different labels.
  """
  if isinstance(value, str):
    text = value.strip()
    if text.startswith("[") and text.endswith("]"):
      value = strict_json.loads(value, f"{where}: the list of labels", list)
    elif text.startswith("[") or text.endswith("]") or (separator in text and text[-1] == _BRACKETS.get(text[0])):
      raise UserError(
        f'{where}: the labels {strict_json.show(value, 40)} are no JSON list; write ["a", "b"], or names with '
        f"{separator!r} between"
      )
    else:
      value = value.split(separator)
  parts = value if isinstance(value, list) else [value]
  names = [label(part, where) for part in parts if not is_missing(part)]
  for name, count in collections.Counter(names).most_common(1):
    if count > 1:  # most likely a 0 or 1 for each label
      raise UserError(f'{where} has the label {name!r} {count} times; expected names once each, as ["joy", "love"]')
  return names


def number(value: Any, where: str, what: str) -> float:
  """Returns the finite number in a cell, within the range of float32.

  Args:
    value: the cell.
    where: the row, for errors.
    what: what the number is, and what to do, such as "a score; every row needs one".

  Raises:
    UserError: the cell holds no finite number.
  """
  try:
    result = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)  # Python reads 1_0 as 10.
  except (TypeError, ValueError, OverflowError):
    result = math.nan
  if not abs(result) <= _LARGEST:
    shown = strict_json.show(value, 40)
    written = value.strip() if isinstance(value, str) else ""
    if re.fullmatch(r"[+-]?[1-9]\d{0,2}(,\d{3})+", written):  # Thousands; one comma may also be that of decimals.
      decimal = f", or if it is decimal replace it: {written.replace(',', '.')}" if written.count(",") == 1 else ""
      shown += f" has a comma (remove the commas of the column: {written.replace(',', '')}{decimal}), and"
    elif re.fullmatch(r"[+-]?\d+,\d+", written):
      shown += f" has a comma (replace the commas of the column: {written.replace(',', '.')}), and"
    raise UserError(f"{where}: {shown} is no number; expected {what}")
  return result
