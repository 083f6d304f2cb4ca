"""Reads the inputs of predictions. Each function returns None for an input of another form."""

from typing import Any


def texts(value: Any, *names: str) -> tuple[str, ...] | None:
  """Reads the fields `names` of a dict, or as many texts in a tuple or list."""
  if isinstance(value, dict):
    value = [value.get(name) for name in names]
  if not isinstance(value, list | tuple) or len(value) != len(names) or not all(isinstance(x, str) for x in value):
    return None
  return tuple(value)


def text(value: Any) -> str | None:
  """Reads a text, or {"text": …}."""
  return value if isinstance(value, str) else (texts(value, "text") or (None,))[0]


def text_or_pair(value: Any) -> str | tuple[str, ...] | None:
  """Reads a text, or two: (first, second) or {"text": …, "pair": …}."""
  is_pair = isinstance(value, list | tuple) or (isinstance(value, dict) and value.get("pair") is not None)
  return texts(value, "text", "pair") if is_pair else text(value)


def text_or_list(value: Any, name: str) -> str | list[str] | None:
  """Reads a text, or a list of texts, which may be the field `name` of a dict."""
  parts = value.get(name) if isinstance(value, dict) else value
  return parts if isinstance(parts, list) and all(isinstance(x, str) for x in parts) else text(value)
