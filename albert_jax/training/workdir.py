"""The folder of a run: one run at a time, one config, and a card that says where its numbers come from.

It is a folder of this machine, or gs://BUCKET/FOLDER. Checkpoints, config.json and run.json are written there directly;
files that grow are written to a folder of this machine, and pushed from there to the bucket.
"""

import contextlib
import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import uuid

import jax
from jax.experimental import multihost_utils

from albert_jax import files
from albert_jax.errors import UserError
from albert_jax.training.guard import HISTORY

# What may differ between a run and its continuation: how it is watched and computed, not what is computed; and not by
# what the best is found, as the one by another metric may be gone.
FREE = ("steps", "epochs", "tokens", "hours", "log_", "eval_every", "eval_batches", "checkpoint_every", "keep_",
        "early_stop", "guard.", "hang_", "init_", "accumulate", "data.workers", "model.remat", "mesh.")  # fmt: skip
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "sentencepiece")
NEEDED = ("metrics.jsonl", HISTORY)  # the files of a run in a bucket that it goes on from, besides its checkpoints
OWNER = "owner.json"  # in a bucket: which process the run belongs to
PART = 1 << 16  # bytes; of larger files only the first and last so many are read for a fingerprint


def place(workdir) -> str:
  """What --workdir names: an absolute path, or a URL. Raises: UserError for a store where no run can be."""
  if not files.is_url(workdir):
    return str(pathlib.Path(workdir).absolute())
  url = str(workdir).rstrip("/")
  if not (url.startswith("gs://") and url.count("/") > 2):
    raise UserError(f"--workdir={workdir}: a run can be in a folder, or in a bucket as --workdir=gs://BUCKET/FOLDER")
  return url


@contextlib.contextmanager
def opened(place: str):
  """Yields the Home of a run. Raises: UserError if another process on this machine has it."""
  home = Home(place)
  with alone(home.folder, place):
    home.fetch()
    try:
      yield home
    except BaseException:
      with contextlib.suppress(UserError, OSError):  # What went wrong first is what should be said.
        home.push()
      raise
    home.push()


@contextlib.contextmanager
def alone(folder, name=None):
  """Holds the folder of a run, so that no second one writes there; the system lets go of it when this process ends."""
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / ".lock", "w") as lock:
    if jax.process_index() == 0:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        raise UserError(
          f"{name or folder} is in use by another run; wait for its end, or give another --workdir"
        ) from None
    yield


class Home:
  """Where a run writes the files that grow, `folder`: its workdir, or for one in a bucket a folder that mirrors it.

  The bucket is what counts: what only the mirror has is forgotten when the run goes on. For a workdir on this machine
  all methods do nothing.
  """

  def __init__(self, place: str):
    self.folder, self._url = pathlib.Path(place), ""
    self._id, self._is_ours, self._pushed = uuid.uuid4().hex, False, {}
    if files.is_url(place):
      self._url = place
      self.folder = files.cache() / "runs" / files.named_after(f"{place} {jax.process_index()}") / self.folder.name

  def fetch(self):
    """Brings from the bucket what a run goes on from."""
    if not self._url:
      return
    for name in NEEDED:
      (self.folder / name).unlink(missing_ok=True)
      if files.exists(f"{self._url}/{name}"):
        files.write(self.folder / name, files.read(f"{self._url}/{name}"))
    self._pushed = self._states()

  def claim(self):
    """Makes the run in the bucket this process's own.

    The last to come has it, so that a run can go on elsewhere when a machine was lost without a word. The one before,
    if it is still there, ends at its next `push`.
    """
    if self._url and jax.process_index() == 0:
      now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
      said = {"id": self._id, "host": platform.node(), "process": os.getpid(), "since": now}
      files.write(f"{self._url}/{OWNER}", json.dumps(said, indent=2).encode() + b"\n")
      self._is_ours = True

  def push(self):
    """Uploads what is new, if the run is ours.

    Is called before a checkpoint is saved, so that no checkpoint is ever newer than the numbers beside it.
    Raises: OSError where the run has gone on elsewhere meanwhile, or the store cannot be reached.
    """
    if not self._is_ours:
      return
    owner = json.loads(files.read(f"{self._url}/{OWNER}"))
    if owner["id"] != self._id:
      raise OSError(
        f"{self._url} was taken over at {owner['since']} by another run, process {owner['process']} on "
        f"{owner['host']}; this one ends"
      )
    states = self._states()
    # Small ones last: a folder's config.json, by which others know that it is there, comes after its weights.
    for path in sorted(states, key=lambda path: states[path][0], reverse=True):
      if states[path] != self._pushed.get(path):
        files.upload(path, self._name(path))
    for path in self._pushed.keys() - states.keys():
      files.remove(self._name(path))
    self._pushed = states

  def share(self):
    """Lets all hosts see what the first one has written."""
    self.push()
    if self._url and jax.process_count() > 1:
      multihost_utils.sync_global_devices("albert_jax.workdir")
      if jax.process_index():
        self.fetch()

  def _name(self, path):
    return f"{self._url}/{path.relative_to(self.folder).as_posix()}"

  def _states(self):
    """{file of the mirror: (bytes, time of its last change)}, without the lock."""
    found = [path for path in self.folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def settled_steps(config, place) -> int:
  """How many steps `config.hours` were found to be when this run began; 0 if that is not known."""
  old = _read(f"{place}/config.json") if _is_begun(place) else {}
  return old["steps"] if old.get("hours") == config.hours else 0


def same_run(config, place):
  """Writes `config.json`, or finds the same one there. Raises: UserError that names the fields that differ."""
  path = f"{place}/config.json"
  new = json.loads(config.to_json())
  if (old := _read(path)) and _is_begun(place):
    ours, theirs = _flat(new), _flat(old)
    changed = [
      f"{name}: {theirs.get(name)!r} there, {ours.get(name)!r} here"
      for name in sorted({*ours, *theirs})
      if ours.get(name) != theirs.get(name) and not name.startswith(FREE)
    ]
    if changed:
      raise UserError(
        f"{place} holds a run with another config:\n  " + "\n  ".join(changed) + "\n"
        "Give the same values to go on with it, or another --workdir to start anew."
      )
  if jax.process_index() == 0:
    files.write(path, json.dumps(new, indent=2).encode() + b"\n")


def card(config, vocabulary, place, start: int) -> dict:
  """The run card, which is also written to `run.json`: what is needed to make these numbers again.

  Args: vocabulary: its file. start: the step this process goes on from.
  """
  path, now = f"{place}/run.json", datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  before = (_read(path) if start else {}) or {"id": uuid.uuid4().hex, "resumed": []}
  kinds = [device.device_kind for device in jax.devices()]
  new = {
    "id": before["id"],
    "started": before.get("started", now),
    "resumed": before["resumed"] + ([{"step": start, "time": now}] if start else []),
    "command": sys.argv,
    "code": _code(),
    "python": platform.python_version(),
    "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    "devices": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
    "hosts": jax.process_count(),
    "dataset": {
      name: fingerprint(files.local(name))
      for name in config.data.dataset.split(",")
      if name and (files.is_url(name) or pathlib.Path(name).exists())
    },
    "vocabulary": fingerprint(vocabulary),
    "config": json.loads(config.to_json()),
  }
  if jax.process_index() == 0:
    files.write(path, json.dumps(new, indent=2).encode() + b"\n")
  return new


def fingerprint(path) -> str:
  """A SHA-256 of a file, or of the names, sizes and contents of a folder's files; large ones by their ends."""
  path = pathlib.Path(path)
  found = hashlib.sha256()
  files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
  for file in files:
    size = file.stat().st_size
    if path.is_dir():
      found.update(f"{file.relative_to(path)} {size}\n".encode())
    with file.open("rb") as stream:
      found.update(stream.read(PART))
      if size > PART:
        stream.seek(max(PART, size - PART))
        found.update(stream.read())
  return found.hexdigest()


def _read(path) -> dict:
  """The object in a file; {} if there is none."""
  return json.loads(files.read(path)) if files.exists(path) else {}


def _is_begun(place) -> bool:
  """Whether there is a checkpoint to go on from."""
  folder = f"{place}/checkpoints"
  return files.exists(folder) and any(name[:1].isdigit() for name in files.sizes(folder))


def _code() -> dict:
  """The package's version, and the revision of the checkout it is in, if it is in one."""
  found = {"version": importlib.metadata.version("albert-jax")}
  root = pathlib.Path(__file__).parents[2]
  if (root / ".git").exists():
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
      for name, words in (("revision", "rev-parse HEAD"), ("changed", "status --porcelain")):
        git = subprocess.run(["git", "-C", root, *words.split()], capture_output=True, check=True, text=True)
        found[name] = git.stdout.strip()
  return found


def _flat(tree, prefix=""):
  return {
    name: leaf
    for key, value in tree.items()
    for name, leaf in (_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}).items()
  }
