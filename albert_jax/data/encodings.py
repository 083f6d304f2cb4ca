"""Text that is not UTF-8: which encoding a file seems to have, and reading it as UTF-8."""

import codecs
import io
import re
from typing import Any, BinaryIO

from albert_jax.errors import UserError, did_you_mean

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = {
  codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
  codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
# How files begin that are no text.
_BINARY = {
  b"PAR1\x15": "Parquet", b"PK\x03\x04": ".zip, .xlsx or .docx", b"\x1f\x8b": ".gz", b"\xfd7zXZ\0": ".xz",
  b"\x28\xb5\x2f\xfd": ".zst", b"BZh": ".bz2", b"%PDF-": ".pdf",
}  # fmt: skip
_JAPANESE_ESCAPES = (b"\x1b$B", b"\x1b$@")
_HEAD_BYTES = 1 << 16  # of a file, from which its encoding is guessed
# A file that has no valid UTF-8 beyond ASCII is damaged up to these numbers, and of another encoding above them.
_FEW_INVALID, _INVALID_SHARE = 2, 0.002
# UTF-32 first: it has NUL characters if it is read as UTF-16. Text in these has ASCII characters, such as line ends.
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_ASCII_SHARE = 0.01
_FEW_NULS, _NUL_SHARE = 1, 0.01  # Of UTF-8 text with up to so many NUL bytes, they are damage.

# Encodings of older files in order, each with frequent characters and, for those of several bytes, their least share of
# the characters beyond ASCII. Text in a wrong encoding of several bytes decodes without errors, but to characters that
# are rare. Written here because charset-normalizer 3.5 named 7 of 16 short texts in tests/test_encodings.py.
_KANA = "のにはをたがでてとしれさいるなもかっらりンスルトアリイラクシ"
_SEVERAL_BYTES = {
  "euc-jp": (_KANA, 0.15), "cp932": (_KANA, 0.15), "gb18030": ("的一是在不了有和人这中大", 0.08),
  "big5": ("的一是在不了有和人這中大", 0.08), "cp949": ("이다는의에가을를은고하지로", 0.15),
}  # fmt: skip
_QUOTES = "„“”‘’‚–—…«»‹›€§°·\xa0"
_WESTERN = "ÀÂÄÅÆÇÈÉÊËÍÎÑÓÔÕÖØÚÜàáâãäåæçèéêëìíîïñòóôõöøùúûüß¿¡ªº"
_LATIN = {
  "cp1252": _WESTERN + "œ" + _QUOTES,
  "cp1250": "ÁÄĄČĆĎÉĚĘÍŁŇŃÓÖŐŘŠŚŤÚŮÜŰÝŽŹŻáäąčćďéěęíłňńóöôőřšśťúůüűýžźżăâîșțşţßđ" + _QUOTES,
  "cp1254": "ÇĞİÖŞÜçğıöşüâîû" + _QUOTES,
  "cp1257": "ĀČĒĢĪĶĻŅŠŪŽāčēģīķļņšūžąęėįųõäöü" + _QUOTES,
  "cp850": _WESTERN + "«»§°·",
  "mac-roman": _WESTERN + "œ" + _QUOTES,
}
_OTHER_SCRIPTS = {
  "cp1255": "אבגדהוזחטיכלמנסעפצקרשתםןץףך" + _QUOTES,
  "cp1251": "абвгдежзийклмнопрстуфхцчшщъыьэюяёіїєґ" + _QUOTES,
  "koi8-r": "абвгдежзийклмнопрстуфхцчшщъыьэюяё",
  "cp1253": "αβγδεζηθικλμνξοπρστυφχψωςάέήίόύώ" + _QUOTES,
  "cp1256": "ابتثجحخدذرزسشصضطظعغفقكلمنهويىةءأإآؤئ،؟" + _QUOTES,
  "cp874": "กขคงจชซญดตถทนบปผพฟภมยรลวศษสหอะัาำิีึืุูเแโใไ่้็์" + _QUOTES,
}
_ONE_BYTE_SHARE = 0.7
# A word with a letter beyond ASCII: in Latin scripts most have ASCII letters too, in other scripts few have.
_WORD = re.compile(rb"[A-Za-z\x80-\xff]*[\x80-\xff][A-Za-z\x80-\xff]*")


def checked(names: str) -> str:
  """Returns encodings as Python writes their names, with commas between; '' stays ''.

  Raises:
    UserError: there is no text encoding of that name.
  """
  result = []
  for name in names.split(",") if names else []:
    try:
      "".encode(name.strip())
      result.append(codecs.lookup(name.strip()).name)
    except (LookupError, ValueError):
      known = ["utf-8", "utf-16", *_LATIN, *_OTHER_SCRIPTS, "shift_jis", *_SEVERAL_BYTES]
      raise UserError(
        f"--encoding={name} is unknown{did_you_mean(name, known)}; expected one such as {', '.join(known)}"
      ) from None
  return ",".join(result)


def by_mark(head: bytes) -> str:
  """Returns the encoding that a file names: utf-16 and utf-32 by a byte order mark, iso-2022-jp by escapes, or ''."""
  if any(escape in head for escape in _JAPANESE_ESCAPES):
    return "iso-2022-jp"
  return next((name for mark, name in _MARKS.items() if head.startswith(mark)), "")


def by_nuls(head: bytes) -> str:
  """Returns the encoding of UTF-16 or UTF-32 text without a byte order mark, such as utf-16-le; '' for other text."""
  nuls, counts = head.count(0), {}
  if not nuls or (nuls <= _FEW_NULS + _NUL_SHARE * len(head) and _is_utf8(head)):
    return ""
  for name in _WIDE:
    try:
      text = codecs.getincrementaldecoder(name)().decode(head)
    except UnicodeDecodeError:
      continue
    count = sum(map(str.isascii, text))
    if "\0" not in text and count > _ASCII_SHARE * len(text):
      counts[name] = count
  return max(counts, key=lambda name: counts[name], default="")


def is_wide(encoding: str) -> bool:
  """Returns whether text in this encoding has NUL bytes."""
  return encoding.startswith(("utf-16", "utf-32"))


def invalid_characters(data: bytes) -> tuple[int, int]:
  """Counts what is beyond ASCII in UTF-8 text.

  Args:
    data: the first bytes of a file; the last character may be cut.

  Returns:
    (the number of invalid sequences, the number of valid characters beyond ASCII).
  """
  if data.isascii():
    return 0, 0
  text = codecs.getincrementaldecoder("utf-8")("replace").decode(data)
  written = data.count("\ufffd".encode())
  return text.count("\ufffd") - written, len(re.findall(r"[^\x00-\x7f\ufffd]", text)) + written


def _is_utf8(data):
  """Returns whether text is UTF-8, apart from damage."""
  invalid, valid = invalid_characters(data)
  return invalid <= max(valid, _FEW_INVALID, _INVALID_SHARE * len(data))


def guess(data: bytes) -> tuple[str, str]:
  """Guesses the encoding of text that is not UTF-8.

  Args:
    data: the first bytes of a file.

  Returns:
    (encoding, the first word with a letter beyond ASCII as it reads in that encoding); ('', '') if none fits.
  """
  data = data[:_HEAD_BYTES]
  shares = {}
  for name, (frequent, least) in _SEVERAL_BYTES.items():
    share = _share(data, name, frequent)
    if share >= least:
      shares[name] = share / least
  if not shares:
    words = _WORD.findall(data)
    is_latin = 2 * sum(re.search(rb"[A-Za-z]", word) is not None for word in words) > len(words)
    alphabets = _LATIN if is_latin else _OTHER_SCRIPTS
    shares = {name: _share(data, name, letters) for name, letters in alphabets.items()}
  name = max(shares, key=lambda name: shares[name])
  if shares[name] < _ONE_BYTE_SHARE:
    return "", ""
  text = codecs.getincrementaldecoder(name)().decode(data)
  word = re.search(r"[^\W\d_]*[^\W\d_\x00-\x7f][^\W\d_]*", text)
  return name, word.group()[:16] if word else ""


def _share(data, name, frequent):
  """Returns the share of `frequent` characters among those beyond ASCII; 0 where the encoding does not fit."""
  try:
    characters = re.findall(r"[^\x00-\x7f]", codecs.getincrementaldecoder(name)().decode(data))
  except UnicodeDecodeError:
    return 0.0
  return sum(character in frequent for character in characters) / max(1, len(characters))


def refuse_marked(path: object, head: bytes, flag: bool = False) -> None:
  """Refuses a file of another encoding, see `by_mark` and `by_nuls`, or that begins as files do that are no text.

  Args:
    path: the file's name, for the message.
    head: its first bytes, decompressed.
    flag: whether the command has --encoding.

  Raises:
    UserError: it does; says what to type.
  """
  if kind := next((kind for magic, kind in _BINARY.items() if head.startswith(magic)), ""):
    raise UserError(f"{path} is a {kind} file, which is no text; unpack it, or save its text as CSV or JSON lines")
  mark = by_mark(head)
  if name := mark or by_nuls(head[:_HEAD_BYTES]):
    what = f"is {name.upper()} text" if mark else f"seems to be {name.upper()} text, without a byte order mark"
    raise UserError(f"{path} {what}; {f'add --encoding={name}, or ' * flag}{_convert(name)}")


def refuse_other(path: str, head: bytes) -> None:
  """Refuses a file of a corpus that is clearly in another encoding than UTF-8.

  Single invalid bytes pass: they are damage, which the reader repairs and counts.

  Args:
    path: the file's name, for the message.
    head: its first bytes, decompressed.

  Raises:
    UserError: it is in another encoding; names the flag that reads it.
  """
  if not _is_utf8(head):
    name, word = guess(head)
    if name:
      raise UserError(
        f"{path} is not UTF-8 text; with {name} it reads {word!r}. Add --encoding={name} (or another) to read the "
        "files that are not UTF-8, or --encoding=utf-8 to replace their invalid characters"
      )


def advice(data: bytes) -> str:
  """Returns the end of an error about text that is not UTF-8: how it reads, and the command that converts it.

  Args:
    data: the text.
  """
  name, word = guess(data)
  reads = f" (with {name} it reads {word!r})" if name else ""
  return f"{reads}; save it as UTF-8 (in Excel: CSV UTF-8), or {_convert(name or 'latin1')}"


def _convert(name):
  return f"convert it, as with: iconv -f {name} -t utf-8 FILE > NEW"


def of_file(path: str, file: BinaryIO, names: str) -> str:
  """Decides how to read a file of a corpus for which encodings were given.

  Args:
    path: the file's name, for the message.
    file: at its start; any position afterwards.
    names: encodings of the files that are not UTF-8, from `checked`.

  Returns:
    The encoding that the byte order mark names, '' for UTF-8, or one of `names`: the one that the file seems to have,
    otherwise the first. The first 64 KiB beyond ASCII decide.

  Raises:
    UserError: the file is in another encoding of several bytes than those given.
  """
  encodings = names.split(",")
  data = file.read(_HEAD_BYTES)
  if name := by_mark(data):
    return name
  if b"\0" in data and (wide := next(filter(is_wide, encodings), "")):
    return wide
  while data and data.isascii():
    data = file.read(_HEAD_BYTES)
  invalid, valid = invalid_characters(data)
  if invalid <= valid or encodings == ["utf-8"]:
    return ""
  name, word = guess(data)
  alike = [each for each in encodings if _base(each) == _base(name)] if name else []
  if name in _SEVERAL_BYTES and not alike and invalid > _FEW_INVALID:
    raise UserError(
      f"{path} seems to be {name} text, not {' or '.join(encodings)}: with {name} it reads {word!r}; name all, as "
      f"--encoding={','.join(encodings)},{name}"
    )
  return (alike or encodings)[0]


def _base(name):
  """Returns the larger encoding that an encoding is a part of."""
  larger = {"shift_jis": "cp932", "gb2312": "gb18030", "gbk": "gb18030", "euc_kr": "cp949", "iso8859-1": "cp1252"}
  name = codecs.lookup(name).name
  return larger.get(name, name)


class Utf8Bytes(io.RawIOBase):
  """A file of another encoding as UTF-8 bytes; what is invalid in it becomes a byte that is invalid in UTF-8."""

  def __init__(self, file: BinaryIO, encoding: str):
    self._file, self._rest, self._is_over = file, b"", False
    self._decoder = codecs.getincrementaldecoder(encoding)("replace")

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    while not self._rest and not self._is_over:
      data = self._file.read(_HEAD_BYTES)
      self._is_over = not data
      text = self._decoder.decode(data, self._is_over)
      self._rest = text.encode("utf-8", "replace").replace("\ufffd".encode(), b"\xff")
    data = self._rest[: len(buffer)]
    self._rest = self._rest[len(data) :]
    buffer[: len(data)] = data
    return len(data)
