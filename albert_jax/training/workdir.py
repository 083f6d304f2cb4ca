"""The folder of a run: a lock for one process, one config, and a card with the origin of its metrics.

It is a folder of this machine, or gs://BUCKET/FOLDER. Checkpoints, config.json and run.json are written there directly;
files that grow are written to a folder of this machine, and pushed from there to the bucket.
"""

import contextlib
import datetime
import fcntl
import hashlib
import json
import logging
import os
import pathlib
import platform
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from albert_jax import copies, files, strict_json, versions
from albert_jax.errors import UserError, masked
from albert_jax.training.guard import HISTORY
from albert_jax.training.writer import METRICS

log = logging.getLogger(__name__)

# The fields that may differ between a run and its continuation: logging and computation, but not the result. `best` is
# not among them: the best checkpoint by another metric may have been removed.
FREE = ("steps", "epochs", "tokens", "hours", "log_", "eval_every", "eval_batches", "checkpoint_every", "keep_",
        "early_stop", "guard.", "hang_", "init_", "accumulate", "data.workers", "model.remat", "mesh.")  # fmt: skip
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "sentencepiece")
# What a run makes, and whether it is a folder.
RESULTS = {"checkpoints": True, "export": True, "predictions": True, METRICS: False, "curves.png": False}
NEEDED = (METRICS, HISTORY)  # the files of a run in a bucket that resuming needs, besides its checkpoints
OWNER = "owner.json"  # in a bucket: which process the run belongs to
PART = 1 << 16  # bytes; of larger files only the first and last so many are read for a fingerprint
SHOWN = 8  # of the fields that differ from those of the run in the workdir
PATTERN = "*?["  # Orbax takes a path with one of these for a pattern, and then its checkpoints cannot be read.


def resolve(workdir: str | os.PathLike) -> str:
  """Resolves --workdir to an absolute path or URL.

  Args:
    workdir: a path, in which ~ is the home directory, or a URL.

  Returns:
    An absolute path, or a URL.

  Raises:
    UserError: it is empty, names a store that no run can be in, or has characters that break checkpoints.
  """
  name = os.fspath(workdir)
  if not name.strip():
    raise UserError("--workdir is empty (an unset variable?); give the folder of the run, as --workdir=runs/first")
  if bad := [character for character in PATTERN if character in name]:
    raise UserError(f"--workdir={name}: checkpoints cannot be read in a path with {' '.join(bad)}; give another name")
  if not files.is_url(name):
    path = pathlib.Path(name).expanduser().absolute()
    if path.exists() and not path.is_dir():
      raise UserError(f"--workdir={name} is a file; give the folder of a run")
    return str(path)
  url = name.rstrip("/")
  if not (url.startswith("gs://") and url.count("/") > 2):
    raise UserError(f"--workdir={name}: a run can be in a folder, or in a bucket as --workdir=gs://BUCKET/FOLDER")
  return url


@contextlib.contextmanager
def open_run(directory: str) -> Iterator["RunFolder"]:
  """Opens the folder of a run for this process alone, and pushes its files when the block ends.

  Raises:
    UserError: another process on this machine has it open.
  """
  folder = RunFolder(directory)
  with lock(folder.path, directory):
    check_results(folder.path)
    folder.fetch()
    try:
      yield folder
    except BaseException:
      with contextlib.suppress(UserError, OSError):  # The first error is the one to report.
        folder.push()
      raise
    folder.push()


def check_results(folder: pathlib.Path) -> None:
  """Checks, before a run begins, that its results can be written into a folder when it ends.

  Raises:
    UserError: something of another kind has the name of a result.
  """
  for name, is_folder in RESULTS.items():
    path = folder / name
    if name == "export" and path.is_symlink():
      raise UserError(f"{path} is a link, which the run would not follow; remove it, or give another --workdir")
    if path.exists() and path.is_dir() != is_folder:
      kinds = ("a file", "a folder") if is_folder else ("a folder", "a file")
      raise UserError(f"{path} is {kinds[0]}, and the run makes {kinds[1]} there; move it, or give another --workdir")


@contextlib.contextmanager
def lock(folder: pathlib.Path, name: str | None = None) -> Iterator[None]:
  """Locks the folder of a run; the system releases the lock when this process ends.

  Args:
    folder: where the lock file is.
    name: how to name the run in the error; None for the folder.

  Raises:
    UserError: another process has the lock.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / ".lock", "w") as file:
    if jax.process_index() == 0:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        raise UserError(
          f"{name or folder} is in use by another run; wait for its end, or give another --workdir"
        ) from None
    yield


class RunFolder:
  """The folder for the growing files of a run: its workdir, or a local mirror of a workdir in a bucket.

  If the mirror and the bucket disagree, the bucket takes precedence. For a workdir on this machine all methods do
  nothing.

  Attributes:
    path: the local folder.
  """

  def __init__(self, directory: str):
    self.path, self._url = pathlib.Path(directory), ""
    self._id, self._is_ours = uuid.uuid4().hex, False
    self._pushed: dict[pathlib.Path, tuple[int, int]] = {}
    if files.is_url(directory):
      self._url = directory
      self.path = files.cache() / "runs" / files.named_after(f"{directory} {jax.process_index()}") / self.path.name

  def fetch(self) -> None:
    """Downloads the files that resuming needs from the bucket."""
    if not self._url:
      return
    for name in NEEDED:
      (self.path / name).unlink(missing_ok=True)
      if files.exists(f"{self._url}/{name}"):
        files.write(self.path / name, files.read(f"{self._url}/{name}"))
    self._pushed = self._states()

  def claim(self) -> None:
    """Makes this process the owner of the run in the bucket.

    The last process to claim it owns it, so that a run can resume elsewhere after a machine was lost. The process
    before, if it still runs, ends at its next `push`.
    """
    if self._url and jax.process_index() == 0:
      time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
      owner = {"id": self._id, "host": platform.node(), "process": os.getpid(), "since": time}
      files.write(f"{self._url}/{OWNER}", json.dumps(owner, indent=2).encode() + b"\n")
      self._is_ours = True

  def push(self) -> None:
    """Uploads new files, if this process owns the run.

    Call it before a checkpoint is saved, so that no checkpoint is newer than the numbers beside it.

    Raises:
      OSError: another process owns the run by now, or the store cannot be reached.
    """
    if not self._is_ours:
      return
    owner = _read(f"{self._url}/{OWNER}")
    if owner.get("id") != self._id:
      raise OSError(
        f"{self._url} was taken over at {owner.get('since')} by another run, process {owner.get('process')} on "
        f"{owner.get('host')}; this one ends"
      )
    states = self._states()
    # Small files last: config.json, which marks a folder as complete, comes after the weights.
    for path in sorted(states, key=lambda path: states[path][0], reverse=True):
      if states[path] != self._pushed.get(path):
        files.upload(path, self._name(path))
    for path in self._pushed.keys() - states.keys():
      files.remove(self._name(path))
    self._pushed = states

  def share(self) -> None:
    """Makes the files of the first host visible to all hosts."""
    self.push()
    if self._url and jax.process_count() > 1:
      multihost_utils.sync_global_devices("albert_jax.workdir")
      if jax.process_index():
        self.fetch()

  def _name(self, path):
    return f"{self._url}/{path.relative_to(self.path).as_posix()}"

  def _states(self):
    """Returns {file of the mirror: (bytes, time of its last change)}, without the lock."""
    paths = [path for path in self.path.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


def has_begun(directory: str) -> bool:
  """Returns whether a workdir has a checkpoint of a run."""
  return bool(_checkpoint_names(directory))


def settled_steps(config: ConfigDict, directory: str) -> int:
  """Returns the number of steps that `config.hours` gave at the start of this run; 0 if unknown."""
  old = _recorded_config(directory)
  steps = old.get("steps") if old.get("hours") == config.hours else 0
  return steps if type(steps) is int else 0


def check_same_run(config: ConfigDict, fingerprints: dict[str, Any], directory: str) -> None:
  """Checks that a run that has begun had this config and this data, then writes `config.json`.

  Args:
    config: the settled config.
    fingerprints: see `data_fingerprints`; more of them by name, such as that of a teacher's weights.
    directory: the workdir.

  Raises:
    UserError: a field, the dataset, the vocabulary or a teacher has changed, or the folder is that of a model.
  """
  new = masked(json.loads(config.to_json()))
  if old := _recorded_config(directory):
    ours, theirs = flat(new), flat(old)
    changed = [
      f"{name}: {theirs.get(name)!r} there, {ours.get(name)!r} here"
      for name in sorted({*ours, *theirs})
      # A field that the older run's version did not know is off by default; so is one that is gone.
      if (ours.get(name) or None) != (theirs.get(name) or None) and not name.startswith(FREE)
    ]
    tasks = theirs.get("task.name"), ours.get("task.name")
    if tasks[0] != tasks[1]:
      raise UserError(f"{directory} holds a run of the task {tasks[0]!r}, not {tasks[1]!r}; give another --workdir")
    if changed:
      more = f"; and {len(changed) - SHOWN} more fields" if len(changed) > SHOWN else ""
      raise UserError(
        f"{directory} holds a run with another config ({'; '.join(changed[:SHOWN])}{more}); give the same values to go "
        "on with it, or another --workdir to start anew"
      )
    _check_same_data(fingerprints, directory)
  else:
    _check_own_config(directory)
  if jax.process_index() == 0:
    files.write(f"{directory}/config.json", json.dumps(new, indent=2).encode() + b"\n")


def _check_own_config(directory):
  """Refuses a folder whose config.json is not of a run, such as that of a model, which the run would replace."""
  path = f"{directory}/config.json"
  if _checkpoint_names(directory) or not files.exists(path):
    return
  config = strict_json.loads_or_none(files.read(path))
  if isinstance(config, dict) and "steps" not in config:
    raise UserError(f"{path} is not of a run, and the run would replace it; give another --workdir")


def _check_same_data(fingerprints, directory):
  card = _recorded_card(directory)
  datasets = card.get("dataset")
  datasets = datasets if isinstance(datasets, dict) else {}
  changed = [f"dataset {name}" for name, new in fingerprints["dataset"].items() if _differs(datasets.get(name), new)]
  changed += [name for name, new in fingerprints.items() if name != "dataset" and _differs(card.get(name), new)]
  if changed:
    raise UserError(
      f"the contents of the {' and the '.join(changed)} changed since the run in {directory} began (their fingerprints "
      "are in its run.json); restore them to go on, or give another --workdir to start anew"
    )


def _differs(old, new):
  """Returns whether two fingerprints differ; False where an older version recorded none, or one of another kind."""
  return isinstance(old, str) and len(old) == len(new) and old != new


def data_fingerprints(
  dataset: str, vocabulary: str | os.PathLike, read: list[pathlib.Path] | None = None
) -> dict[str, Any]:
  """Fingerprints of what a run reads: {"dataset": {path: SHA-256}, "vocabulary": SHA-256}.

  Args:
    dataset: `config.data.dataset`: paths with commas between. TFDS names are left out.
    vocabulary: the file of the vocabulary.
    read: the files that the run reads; None where it reads all of the dataset.
  """
  if read is not None:
    folder = pathlib.Path(copies.local(dataset)) if dataset else pathlib.Path()
    paths = {_name_in(dataset, folder, path): path for path in read}
  else:
    names = [name for name in files.split_list(dataset) if files.is_url(name) or pathlib.Path(name).exists()]
    paths = {name: pathlib.Path(copies.local(name)) for name in names}
  return {
    "dataset": {masked(name): fingerprint(path) for name, path in paths.items()},
    "vocabulary": fingerprint(vocabulary),
  }


def _name_in(dataset, folder, path):
  """Returns how the user names a file of a dataset; a dataset in a store has another folder on each machine."""
  if dataset and path == folder:
    return dataset
  return f"{dataset.rstrip('/')}/{path.relative_to(folder)}" if dataset and folder in path.parents else str(path)


def write_card(config: ConfigDict, fingerprints: dict[str, Any], directory: str, start: int) -> dict[str, Any]:
  """Writes the run card, `run.json`: what is needed to make these numbers again.

  Args:
    config: the settled config.
    fingerprints: see `data_fingerprints`.
    directory: the workdir.
    start: the step at which this process begins.

  Returns:
    The card.
  """
  time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  before = _recorded_card(directory) if start else {}
  kinds = [device.device_kind for device in jax.devices()]
  new = {
    "id": before.get("id", uuid.uuid4().hex),
    "started": before.get("started", time),
    "resumed": before.get("resumed", []) + ([{"step": start, "time": time}] if start else []),
    "command": masked(sys.argv),
    "code": _code(),
    "python": platform.python_version(),
    "packages": {name: versions.installed(name) for name in PACKAGES},
    "devices": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
    "hosts": jax.process_count(),
    **fingerprints,
    "config": masked(json.loads(config.to_json())),
  }
  if jax.process_index() == 0:
    files.write(f"{directory}/run.json", json.dumps(new, indent=2).encode() + b"\n")
  return new


def fingerprint(path: str | os.PathLike) -> str:
  """Returns a SHA-256 of a file, or of the names, sizes and contents of a folder's files.

  Large files of a folder are read at both ends only: a corpus may have terabytes, and the end of an ArrayRecord has the
  positions of all its records. In a prepared dataset, pictures and files that `prepare` did not write are left out.
  """
  path = pathlib.Path(path)
  if not path.is_dir():
    with path.open("rb") as stream:
      return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
  paths = sorted(p for p in path.rglob("*") if p.is_file())
  if (path / "prepare.json").is_file():
    foreign = files.foreign_files(path)
    paths = [p for p in paths if p.relative_to(path).as_posix() not in foreign and p.suffix != ".png"]
  digest = hashlib.sha256()
  for file in paths:
    size = file.stat().st_size
    digest.update(f"{file.relative_to(path)} {size}\n".encode())
    with file.open("rb") as stream:
      digest.update(stream.read(PART))
      if size > PART:
        stream.seek(max(PART, size - PART))
        digest.update(stream.read())
  return digest.hexdigest()


def _recorded_config(directory) -> dict[str, Any]:
  """The config of a run that has begun; {} if there is none. Where config.json is damaged, the card's copy is read."""
  if not _checkpoint_names(directory):
    return {}
  config = _read(f"{directory}/config.json") or _recorded_card(directory).get("config")
  return config if isinstance(config, dict) else {}


def _recorded_card(directory) -> dict[str, Any]:
  """The card of a run; {} if there is none. Where run.json is damaged, the copy in the newest checkpoint is read."""
  for folder in (directory, *(f"{directory}/checkpoints/{name}" for name in _checkpoint_names(directory))):
    path = f"{folder}/run.json"
    if card := _read(path):
      if _has_times(card):
        return card
      log.warning("%s is damaged (its id or times), and is ignored.", path)
  return {}


def _has_times(card) -> bool:
  """Returns whether the fields of a card that the next card takes over are of their kinds, or absent."""
  resumed = card.get("resumed", [])
  starts: list[Any] = [{"step": 0, "time": card["started"]}] if "started" in card else []
  starts += resumed if isinstance(resumed, list) else [None]
  return isinstance(card.get("id", ""), str) and all(map(_is_start, starts))


def _is_start(start):
  try:
    return type(start["step"]) is int and datetime.datetime.fromisoformat(start["time"]).tzinfo is not None
  except (TypeError, KeyError, ValueError):
    return False


def _read(path) -> dict[str, Any]:
  """Returns the object in a JSON file; {} if there is none, or the file is damaged."""
  if not files.exists(path):
    return {}
  value = strict_json.loads_or_none(files.read(path))
  if not isinstance(value, dict):
    log.warning("%s is damaged, and is ignored.", path)
    return {}
  return value


def _checkpoint_names(directory) -> list[str]:
  """Returns the folders of the run's checkpoints, the newest first."""
  folder = f"{directory}/checkpoints"
  names = [name for name in files.sizes(folder) if name.isdecimal()] if files.exists(folder) else []
  return sorted(names, key=int, reverse=True)


def _code() -> dict[str, str]:
  """Returns the package's version, and the revision of the checkout it is in, if it is in one."""
  code = {"version": versions.installed()}
  root = pathlib.Path(__file__).parents[2]
  if (root / ".git").exists():
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
      for name, words in (("revision", "rev-parse HEAD"), ("changed", "status --porcelain")):
        git = subprocess.run(["git", "-C", root, *words.split()], capture_output=True, check=True, text=True)
        code[name] = git.stdout.strip()
  return code


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns {"a.b": leaf} of nested dicts."""
  return {
    name: leaf
    for key, value in tree.items()
    for name, leaf in (flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}).items()
  }
