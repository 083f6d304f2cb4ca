"""`UserError` for mistakes that the user can fix, one-line messages of all errors, and the masking of secrets."""

import re
from typing import Any


class UserError(ValueError):
  """A mistake of the user. The message says what was given, what was expected and what to type next.

  Commands print it as one line and exit with code 2.
  """


def message_lines(error: BaseException) -> list[str]:
  """What an error says, by lines: one at least, which is its kind where it says nothing."""
  return str(error).strip().splitlines() or [type(error).__name__]


_HIDDEN = "***"
_SECRET = (
  r"(?:pass(?:word|wd|phrase)?|pwd|secret|credentials?|auth|(?:api|access|private|secret|account)[_-]?key|token"
  r"|signature|sig)"
)
# Names such as tokens of a vocabulary, which are not secret.
_PUBLIC = r"(?:pad|unk|cls|sep|mask|bos|eos|special|added)[_-]"
_NAME = re.compile(rf"(?i)^(?!{_PUBLIC})(?:.*[._-])?{_SECRET}$")
_PATTERNS = (
  (re.compile(r"(?<=://)[^/\s@'\"]+@"), f"{_HIDDEN}@"),  # The user and password of a URL.
  (
    re.compile(rf"(?i)(?<![a-z0-9_])((?:(?!{_PUBLIC})[a-z0-9]+[._-])*{_SECRET})(\s*=\s*)(['\"]?)[^\s'\"&,;]+"),
    rf"\1\2\3{_HIDDEN}",
  ),
  (re.compile(r"(?i)\b(bearer|basic) [a-z0-9._~+/=-]{8,}"), rf"\1 {_HIDDEN}"),
  # Keys of known services, by their prefixes.
  (re.compile(r"\b(?:hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[a-z]-|A[KS]IA|AIza|ya29\.)[\w.-]{12,}"), _HIDDEN),
)  # fmt: skip


def masked(value: Any) -> Any:
  """Returns a text, or a tree of dicts and lists, without what looks like a password or key.

  Passwords in URLs, values of fields such as `token=` or `api_key=`, and keys of well-known services become `***`.

  Args:
    value: the value to print or write; a value that is not a str, dict or list is returned unchanged.
  """
  if isinstance(value, str):
    for pattern, replacement in _PATTERNS:
      value = pattern.sub(replacement, value)
    return value
  if isinstance(value, dict):
    return {
      key: _HIDDEN if isinstance(key, str) and _NAME.search(key) and isinstance(item, str) and item else masked(item)
      for key, item in value.items()
    }
  if isinstance(value, list | tuple):
    return type(value)(masked(item) for item in value)
  return value


def one_line(error: BaseException) -> str:
  """Returns an error as one line to print: its kind unless the message says enough, and no secrets."""
  if isinstance(error, OSError) and error.strerror:
    names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return masked(f"{names}: {error.strerror}" if names else error.strerror)
  text = " ".join(line.strip() for line in message_lines(error))
  if len(text) > 600:
    text = f"{text[:600]} …"
  kind = type(error).__name__
  return masked(text if isinstance(error, OSError | FloatingPointError) or text == kind else f"{kind}: {text}")
