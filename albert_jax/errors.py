"""`UserError` for mistakes that the user can fix, one-line messages of all errors, and the masking of secrets."""

import difflib
import re
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
  """A mistake of the user. The message says what was given, what was expected and what to type next.

  Commands print it as one line and exit with code 2.
  """


def did_you_mean(name: str, names: Iterable[str]) -> str:
  """Returns '; did you mean …?' with the nearest name, '' if none is near."""
  near = difflib.get_close_matches(name, list(names), 1, 0.6)
  return f"; did you mean {near[0]}?" if near else ""


def message_lines(error: BaseException) -> list[str]:
  """What an error says, by lines: one at least, which is its kind where it says nothing."""
  return str(error).strip().splitlines() or [type(error).__name__]


_HIDDEN = "***"
_STRONG = r"(?:passwords?|passwd|passphrase|pwd|secrets?|(?:api|access|private|secret|account)[_-]?key)"
_WORD = rf"(?:{_STRONG}|pass|credentials?|auth|authorization|bearer|token|signature|sig|sas)"
_CAMEL_CASE = r"(?-i:Token|Secret|Password|Credentials?|Signature|(?:Api|Access|Private|Secret|Account)Key)"
# Names such as tokens of a vocabulary, which are not secret.
_PUBLIC = ("pad", "unk", "cls", "sep", "mask", "bos", "eos", "special", "added")
# The end of a name is enough. What is before it is only looked at, so that the time is in proportion to the text.
_END = "(?:(?<![a-z0-9]){}{}|(?<=[a-z0-9]){}{})".format(
  "".join(f"(?<!{name}[_-])" for name in _PUBLIC), _WORD, "".join(f"(?<!{name})" for name in _PUBLIC), _CAMEL_CASE
)
_NAME = re.compile(f"(?i){_END}$")
_VALUE = r"(?:(?P<quote>['\"])(?:(?!(?P=quote)).)*|[^\s'\"&,;]+)"
_RANDOM = r"(?=[^\s'\"]*\d)(?=[^\s'\"]*[a-z])[^\s'\"&,;]{8,}"
_PATTERNS = tuple((re.compile(pattern), replacement) for pattern, replacement in (
  (r"(?<=://)[^/\s@'\"]+@", f"{_HIDDEN}@"),  # The user and password of a URL.
  (r"(?i)([?&](?:key|code)=)[^\s'\"&#]+", rf"\1{_HIDDEN}"),
  (r"(hooks\.slack\.com/services/)[^\s'\"]+", rf"\1{_HIDDEN}"),
  (r"(?i)\b(bearer|basic) [a-z0-9._~+/=-]{8,}", rf"\1 {_HIDDEN}"),
  (rf"(?i)({_END}(?:['\"]?\s*=\s*|['\"]\s*:\s*)){_VALUE}", rf"\1\g<quote>{_HIDDEN}"),  # NAME=VALUE, 'NAME': 'VALUE'
  (rf"(?i)({_END}:\s*){_RANDOM}", rf"\1{_HIDDEN}"),  # NAME: VALUE, which may also be part of a sentence.
  (rf"(?i)((?<![a-z0-9]){_STRONG}:\s*)[^\s'\"]+", rf"\1{_HIDDEN}"),
  (rf"(?i)((?<![a-z0-9-])--(?:[a-z0-9]+[_-])*{_WORD} +)(?!-)[^\s'\"]+", rf"\1{_HIDDEN}"),  # --NAME VALUE
  # Keys of known services, by their prefixes.
  (r"\b(?:hf_|sk-|gh[pousr]_|github_pat_|glpat-|npm_|pypi-|xox[a-z]-|A[KS]IA|AIza|ya29\.)[\w.-]{12,}", _HIDDEN),
  (r"\beyJ[\w-]{8,}\.[\w.-]{8,}", _HIDDEN),  # A JSON web token.
  (r"(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END|$)", rf"\1 {_HIDDEN} \2"),
))  # fmt: skip


def masked(value: Any) -> Any:
  """Returns a text, or a tree of dicts and lists, without what looks like a password or key.

  Passwords in URLs, values of fields such as `token=` or `"api_key":`, and keys of well-known services become `***`.

  Args:
    value: the value to print or write; a value that is not a str, dict or list is returned unchanged.
  """
  if isinstance(value, str):
    for pattern, replacement in _PATTERNS:
      value = pattern.sub(replacement, value)
    return value
  if isinstance(value, dict):
    return {
      key: _HIDDEN if isinstance(key, str) and _NAME.search(key) and item and item is not True else masked(item)
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
