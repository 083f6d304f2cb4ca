"""Files of a split: which files a split's name stands for, and the text in them."""

import collections
import glob
import logging
import pathlib
import re
from collections.abc import Sequence

from albert_jax import files
from albert_jax.data import encodings
from albert_jax.errors import UserError

log = logging.getLogger(__name__)

# The names of a split's files; the first is that of TFDS.
NAMES = {
  "train": ("train", "training"),
  "validation": ("validation", "dev", "valid", "val", "testa"),
  "test": ("test", "testb"),
}
MAX_NUL_SHARE = 0.01  # A text with more NUL characters is damaged, or UTF-16.
_LETTER = r"[^\W\d_]"
# One of several files of a split, as the Hugging Face Hub numbers them; older ones also have a hash.
_SHARD = re.compile(r"(.+)-(\d{5,})-of-(\d{5,})(-[0-9a-f]+)?")


def names_of(split: str) -> tuple[str, ...]:
  """Returns the names that the files of a split may have, such as dev for validation."""
  return next((names for names in NAMES.values() if split in names), (split,))


def find(
  dataset: str | pathlib.Path, split: str, suffixes: Sequence[str], file_names: Sequence[str] = ()
) -> list[pathlib.Path] | None:
  """Finds the files of a split.

  A file of a folder belongs to a split if its name is one of the split's, as in dev.csv, or else if its name contains
  one as a word, as in dev-v2.0.json and eng.testa. The shards NAME-00000-of-00002.EXT and NAME-00001-of-00002.EXT are
  one file NAME.EXT. A folder without such a file may have it in its folder `data`. An existing file takes precedence
  over a pattern of the same text.

  Args:
    dataset: a folder, one file, which is the training split, or a TFDS name or folder.
    split: a split's name, a file in the folder, a path, or a pattern; several with commas between.
    suffixes: the endings that a file found by a split's name may have.
    file_names: the only names, with endings, that the split's file may have; () for those above.

  Returns:
    The paths, to be read one after the other; None if TFDS has to read the dataset.

  Raises:
    UserError: there is no such file, several files have the split's name, or a shard is missing.
  """
  folder, split = pathlib.Path(dataset).expanduser(), str(split)
  if path := _existing(folder, split):
    return [path]
  parts = [part.strip() for part in split.split(",") if part.strip()]
  if parts and all(paths := [_matching(folder, part) for part in parts]):
    return list(dict.fromkeys(path for each in paths for path in each))
  if not str(dataset) or not parts:
    what = "data.dataset" if parts else "data.split or data.validation_split"
    raise UserError(f"{what} is not set; give a file, a folder or a TFDS name with --config.data.dataset=…")
  if folder.is_file():
    if split in NAMES["train"]:
      return [folder]
    raise UserError(
      f"{folder} is one file, so there is no split {split!r}; give another file with --config.data.validation_split="
      "FILE, or keep a share of this one with --config.data.validation_fraction=0.1"
    )
  if not folder.is_dir():
    if folder.suffix in suffixes or str(dataset).startswith((".", "/", "~")):
      raise UserError(
        f"data.dataset={dataset}: there is no such file or folder; expected a file, a folder or a TFDS name"
        f"{files.near_path(folder)}"
      )
    return None
  if tfds_folder(folder):
    return None
  matches = (_matching(folder, part) or _by_name(folder, part, suffixes, file_names) for part in parts)
  return list(dict.fromkeys(path for each in matches for path in each))


def named(paths: Sequence[str | pathlib.Path]) -> str:
  """Returns the files of a split as messages name them."""
  return str(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def tfds_folder(folder: pathlib.Path) -> pathlib.Path | None:
  """Returns the folder of a TFDS dataset: `folder`, or the newest version inside it; None if neither is one."""
  infos = [
    path for path in (folder / "dataset_info.json", *sorted(folder.glob("*/dataset_info.json"))) if path.is_file()
  ]
  return infos[-1].parent if infos else None


def _existing(folder, name):
  """Returns the file of that name: in the folder, or a path of its own."""
  candidates = [folder / name] if folder.is_dir() else []
  return next((path for path in (*candidates, pathlib.Path(name).expanduser()) if path.is_file()), None)


def _matching(folder, part):
  """Returns the file of that name, or the files that match it as a pattern."""
  if path := _existing(folder, part):
    return [path]
  pattern = pathlib.Path(part).expanduser()
  base = pathlib.Path(glob.escape(str(folder))) if folder.is_dir() else pathlib.Path()
  paths = map(pathlib.Path, sorted(glob.glob(str(base / pattern)))) if glob.has_magic(part) else ()
  return [path for path in paths if path.is_file()]


def _by_name(folder, split, suffixes, file_names):
  names = tuple(file_names) or names_of(split)
  folders = [each for each in (folder, folder / "data") if each.is_dir()]
  for each in folders:
    candidates = _candidates(each, names, suffixes, bool(file_names))
    if len(candidates) > 1:
      shown = _shown([path for paths in candidates for path in paths])
      raise UserError(f"{each} has several files of the split {split!r}: {shown}; name one as the split")
    if candidates:
      _check_shards(candidates[0], split)
      return candidates[0]
  choices = [
    f"--config.data.dataset={path}" for each in folders for path in _visible(each)
    if path.is_dir() and not file_names and _candidates(path, names, suffixes, False)
  ]  # fmt: skip
  if choices:
    raise UserError(
      f"{folder} has no file of the split {split!r}, but folders that have one; choose: {' or '.join(choices[:8])}"
      f"{' or …' * (len(choices) > 8)}"
    )
  endings = "" if file_names else f" (with one of {' '.join(filter(None, suffixes))})"
  shown = _shown([path for each in folders for path in _visible(each)]) or "nothing"
  raise UserError(
    f"{folder} has no file of the split {split!r}: expected {', '.join(names)}{endings}, and there is {shown}; name "
    "the file with --config.data.split=FILE or --config.data.validation_split=FILE"
  )


def _candidates(folder, names, suffixes, is_exact):
  """Returns lists of files of which each may be the split: one file, or shards in their order."""
  sets = collections.defaultdict(list)
  for path in _visible(folder):
    if path.is_dir():  # The Hub's own conversion has train/0000.parquet.
      if parts := sorted(path.glob("[0-9]*.parquet")):
        sets[(path.with_suffix(".parquet"), "")] += parts
      continue
    if not path.is_file():  # To open a named pipe would wait for ever.
      continue
    shard = _SHARD.fullmatch(path.stem)
    sets[(path.with_stem(shard[1]), shard[3]) if shard else (path, "")].append(path)
  whole = [path for path, _ in sets]
  typed = [path for path in whole if path.suffix.lower() in suffixes or path.suffix[1:] in names]
  exact = [[path for path in typed if path.stem == name] for name in names]
  words = [[path for path in typed if re.search(rf"(?<!{_LETTER}){name}(set)?(?!{_LETTER})", path.name, re.I)]
           for name in map(re.escape, names)]  # fmt: skip
  order = [[path for path in whole if path.name == name] for name in names] if is_exact else exact + words
  chosen = next(filter(None, order), [])
  return [paths for (path, _), paths in sets.items() if path in chosen]


def _check_shards(paths, split):
  """Refuses shards of which one is missing, or is there twice."""
  shards = [shard for path in paths if (shard := _SHARD.fullmatch(path.stem))]
  if not shards:
    return
  numbers, total = {int(shard[2]) for shard in shards}, int(shards[0][3])
  missing = next((number for number in range(total) if number not in numbers), None)
  if missing is not None:
    name = f"{shards[0][1]}-{missing:0{len(shards[0][2])}}-of-{shards[0][3]}{paths[0].suffix}"
    raise UserError(
      f"{paths[0].parent} has {len(paths)} of the {total} files of the split {split!r}: {name} is missing; download "
      "the folder again, or name the files to read as the split"
    )
  if len(paths) > total:
    raise UserError(f"{paths[0].parent} has {len(paths)} files for {total} of the split {split!r}: {_shown(paths)}; "
                    "remove those of another version")  # fmt: skip


def _visible(folder):
  return sorted(folder.glob("[!.]*"))


def _shown(paths):
  return ", ".join(path.name for path in paths[:8]) + (", …" if len(paths) > 8 else "")


def read_text(path: str | pathlib.Path) -> str:
  """Reads a text file; its lines end with a line feed, whether the file has LF, CR LF or CR alone.

  A byte order mark is dropped. A few NUL characters are dropped and counted.

  Raises:
    UserError: the file cannot be read, or is no UTF-8 text; names the line.
  """
  try:
    data = files.read(path)
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
  encodings.refuse_marked(path, data)
  try:
    text = data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    line = data.count(b"\n", 0, error.start) + 1
    byte = f"the byte {data[error.start]:#04x} in line {line}"
    raise UserError(f"{path} is not UTF-8 text: {byte}{encodings.advice(data)}") from None
  if nuls := text.count("\0"):
    if nuls > 1 + MAX_NUL_SHARE * len(text):
      line = text.count("\n", 0, text.index("\0")) + 1
      raise UserError(f"{path} has {nuls:,} NUL characters, the first in line {line}; it is damaged or not UTF-8 text")
    warn_count(path, nuls, "NUL characters were dropped")
    text = text.replace("\0", "")
  text = text.replace("\r\n", "\n")
  # Where CR ends the first line it ends every line, and a line feed is part of a quoted cell; else CR is a character.
  first = re.search("[\r\n]", text)
  return text.replace("\r", "\n") if first and first.group() == "\r" else text


def warn_count(source: object, count: int, problem: str) -> None:
  """Logs a warning with a problem of a file and the number of times it occurs."""
  log.warning("%s: %s %s", source, f"{count:,}", problem)
