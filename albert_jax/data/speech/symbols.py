"""Symbol tables: which id each character of a phoneme string has. A table is data, so a language brings its own."""

import collections
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Iterable

import numpy as np

from albert_jax import strict_json
from albert_jax.errors import UserError

FILE = "symbols.json"
TARGETS_FILE = "words.txt"  # beside it: the targets of the word loss, one a line
# The 178 places of PL-BERT and StyleTTS2. The apostrophe stands twice; the later place counts. Place 0 is padding.
STYLETTS2 = (
  '$;:,.!?¡¿—…"«»“” ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'
  "ɑɐɒæɓʙβɔɕçɗɖðʤəɘɚɛɜɝɞɟʄɡɠɢʛɦɧħɥʜɨɪʝɭɬɫɮʟɱɯɰŋɳɲɴøɵɸθœɶʘɹɺɾɻʀʁɽʂʃʈʧʉʊʋⱱʌɣɤʍχʎʏʑʐʒʔʡʕʢǀǁǂǃ"
  "ˈˌːˑʼʴʰʱʲʷˠˤ˞↓↑→↗↘'̩'ᵻ"
)
# The same places as Kokoro uses them; `·` is a place it leaves empty. The mask and the unknown symbol take theirs.
KOKORO = (
  '$;:,.!?··—…"()“” ̃ʣʥʦʨᵝꭧAI···M·O·Q·STU·W·Yᵊabcdef·hijklmnopqrstuvwxyzɑɐɒæ··βɔɕç·ɖðʤə·ɚɛɜ··ɟ·ɡ······ɥ·ɨɪʝ······ɯɰŋɳɲɴø'
  "·ɸθœ··ɹ·ɾɻ·ʁɽʂʃʈʧ·ʊʋ·ʌɣɤ·χʎ···ʒʔ·······ˈˌː···ʰ·ʲ····↓·→↗↘···ᵻ"
)
BUILT_IN = {"styletts2": STYLETTS2, "kokoro": KOKORO}
_EMPTY = "·"
_ROLES = {"pad": "$", "mask": "M", "unk": "U", "space": " "}
_CODES = 0x110000
_MOST_IDS = 1 << 16  # ids are stored in 16 bits


class Symbols:
  """A symbol table.

  Attributes:
    path: str, its file; '' if it has none.
    pieces: list[str], the symbols by id; '' where an id has none.
    vocab_size: int, how many ids there are.
    pad_id, mask_id, unk_id, space_id: int.
  """

  def __init__(
    self,
    ids: dict[str, int],
    *,
    size: int | None = None,
    roles: dict[str, str] | None = None,
    path: str | os.PathLike = "",
  ):
    """Makes a table.

    Args:
      ids: {symbol: id}.
      size: how many ids there are; None: one more than the highest.
      roles: {"pad", "mask", "unk", "space": symbol} where they differ from `$`, `M`, `U` and the space.
      path: where the table comes from, for errors.

    Raises:
      UserError: a symbol is not one character, two share an id, or a role has no symbol.
    """
    self.path = str(path)
    where, roles = path or "the symbol table", _ROLES | (roles or {})
    size = 1 + max(ids.values(), default=-1) if size is None else size
    if type(size) is not int or not 0 < size <= _MOST_IDS:
      raise UserError(f"{where} has {size} ids; expected 1 to {_MOST_IDS}, a whole number")
    self.pieces = [""] * size
    for symbol, number in ids.items():
      if len(symbol) != 1:
        raise UserError(f"{where}: {symbol!r} is {len(symbol)} characters; expected one character a symbol")
      if type(number) is not int or not 0 <= number < size:
        raise UserError(f"{where}: {symbol!r} has the id {number!r}; expected a whole number from 0 to {size - 1}")
      if self.pieces[number]:
        raise UserError(f"{where}: {symbol!r} and {self.pieces[number]!r} both have the id {number}; give each its own")
      self.pieces[number] = symbol
    for role, symbol in roles.items():
      if symbol not in ids:
        raise UserError(f"{where} has no {symbol!r}, the symbol for {role}; add it, or name another under {role!r}")
    self._ids, self._roles, self.vocab_size = dict(ids), roles, size
    self.pad_id, self.mask_id, self.unk_id, self.space_id = (ids[roles[role]] for role in _ROLES)

  def __contains__(self, symbol):
    return symbol in self._ids

  @property
  def ordinary(self) -> list[str]:
    """The symbols that stand for sounds or punctuation: all but the four with a role."""
    return [piece for piece in self.pieces if piece and piece not in self._roles.values()]

  def encode(self, text: str) -> np.ndarray:
    """Returns the ids of a string's characters, uint16 array; `unk_id` for those that have none."""
    return self._by_code[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)]

  @functools.cached_property
  def _by_code(self):
    by_code = np.full(_CODES, self.unk_id, np.uint16)
    for symbol, number in self._ids.items():
      by_code[ord(symbol)] = number
    return by_code

  def extended(self, characters: Iterable[str]) -> "Symbols":
    """Returns the table with further characters at its end; what it has keeps its id."""
    ids = self._ids | {c: self.vocab_size + i for i, c in enumerate(c for c in characters if c not in self._ids)}
    return Symbols(ids, size=self.vocab_size + len(ids) - len(self._ids), roles=self._roles)

  def to_json(self) -> str:
    """Returns the content of `symbols.json`."""
    return json.dumps({"vocab": self._ids, "size": self.vocab_size, **self._roles}, ensure_ascii=False, indent=1) + "\n"

  def write(self, folder: str | os.PathLike) -> None:
    """Writes `symbols.json` into a folder, and `words.txt` if it lies beside the table's own file."""
    (pathlib.Path(folder) / FILE).write_text(self.to_json(), "utf-8")
    words = pathlib.Path(self.path).parent / TARGETS_FILE
    if self.path and words.is_file():
      shutil.copyfile(words, pathlib.Path(folder) / TARGETS_FILE)


def load(name: str | os.PathLike) -> Symbols:
  """Reads a symbol table.

  Args:
    name: `styletts2`, `kokoro`, or a path: a folder with `symbols.json`, JSON with {symbol: id} or {"vocab": {symbol:
      id}} (Kokoro's config.json), or a text file with a symbol a line, the first of which is the padding.

  Raises:
    UserError: there is no such table, or a symbol occurs twice.
  """
  if str(name) in BUILT_IN:
    return Symbols({c: i for i, c in enumerate(BUILT_IN[str(name)]) if c != _EMPTY}, size=len(BUILT_IN[str(name)]))
  path = pathlib.Path(name).expanduser()
  path = path / FILE if path.is_dir() else path
  if not path.is_file():
    raise UserError(f"--symbols={name} is no file; expected {', '.join(BUILT_IN)}, or a file with a symbol a line")
  try:
    text = path.read_text("utf-8-sig")
  except UnicodeDecodeError:
    raise UserError(f"{path} is not UTF-8; expected a symbol a line, or JSON with symbol: id") from None
  if text.lstrip().startswith("{"):
    return _from_json(path, text)
  symbols = text.removesuffix("\n").split("\n")
  twice = [symbol for symbol, count in collections.Counter(symbols).items() if count > 1]
  if twice:
    raise UserError(f"{path}: {twice[0]!r} occurs twice, so its id is not known; remove one of the two")
  return Symbols({symbol: i for i, symbol in enumerate(symbols)}, roles={"pad": symbols[0]}, path=path)


def _from_json(path, text):
  fields = strict_json.loads(text, str(path), dict)
  ids = fields.get("vocab", fields)
  if not isinstance(ids, dict) or not all(type(number) is int for number in ids.values()):
    raise UserError(f'{path} is no symbol table; expected {{"vocab": {{symbol: id}}}}')
  size = fields.get("size", fields.get("n_token"))
  roles = {role: fields[role] for role in _ROLES if isinstance(fields.get(role), str)}
  if "size" not in fields:
    # A foreign table: the roles take ids that it leaves free, so that its own symbols keep theirs.
    size = size or 1 + max(ids.values(), default=-1)
    for role, symbol in _ROLES.items():
      if roles.get(role, symbol) not in ids:
        like = STYLETTS2.index(symbol)
        number = like if like not in ids.values() else max(size, 1 + max(ids.values(), default=-1))
        ids, size = ids | {roles.get(role, symbol): number}, max(size, number + 1)
  return Symbols(ids, size=size, roles=roles, path=path)
