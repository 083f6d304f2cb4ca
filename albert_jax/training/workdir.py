"""The folder of a run: one run at a time, one config, and a card that says where its numbers come from."""

import contextlib
import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys
import uuid

import jax

from albert_jax.errors import UserError

# What may differ between a run and its continuation: how it is watched and computed, not what is computed.
FREE = ("steps", "epochs", "tokens", "hours", "log_", "eval_every", "eval_batches", "checkpoint_every", "keep_",
        "best", "early_stop", "guard.", "hang_", "init_", "accumulate", "data.workers", "model.remat",
        "mesh.")  # fmt: skip
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "sentencepiece")
PART = 1 << 22  # bytes; of larger files only the first and last so many are read for a fingerprint


@contextlib.contextmanager
def alone(workdir):
  """Holds the folder of a run, so that no second one writes there; the system lets go of it when this process ends."""
  workdir.mkdir(parents=True, exist_ok=True)
  with open(workdir / ".lock", "w") as lock:
    if jax.process_index() == 0:
      try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        raise UserError(f"{workdir} is in use by another run; wait for its end, or give another --workdir") from None
    yield


def settled_steps(config, workdir) -> int:
  """How many steps `config.hours` were found to be when this run began; 0 if that is not known."""
  path = workdir / "config.json"
  old = json.loads(path.read_text()) if path.exists() and _is_begun(workdir) else {}
  return old["steps"] if old.get("hours") == config.hours else 0


def same_run(config, workdir):
  """Writes `config.json`, or finds the same one there. Raises: UserError that names the fields that differ."""
  path = workdir / "config.json"
  new = json.loads(config.to_json())
  if path.exists() and _is_begun(workdir):
    old = json.loads(path.read_text())
    ours, theirs = _flat(new), _flat(old)
    changed = [
      f"{name}: {theirs.get(name)!r} there, {ours.get(name)!r} here"
      for name in sorted({*ours, *theirs})
      if ours.get(name) != theirs.get(name) and not name.startswith(FREE)
    ]
    if changed:
      raise UserError(
        f"{workdir} holds a run with another config:\n  " + "\n  ".join(changed) + "\n"
        "Give the same values to go on with it, or another --workdir to start anew."
      )
  if jax.process_index() == 0:
    write(path, json.dumps(new, indent=2) + "\n")


def card(config, vocabulary, workdir, start: int) -> dict:
  """The run card, which is also written to `run.json`: what is needed to make these numbers again.

  Args: vocabulary: its file. start: the step this process goes on from.
  """
  path, now = workdir / "run.json", datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  before = json.loads(path.read_text()) if path.exists() and start else {"id": uuid.uuid4().hex, "resumed": []}
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
      name: fingerprint(name) for name in config.data.dataset.split(",") if name and pathlib.Path(name).exists()
    },
    "vocabulary": fingerprint(vocabulary),
    "config": json.loads(config.to_json()),
  }
  if jax.process_index() == 0:
    write(path, json.dumps(new, indent=2) + "\n")
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


def write(path, text: str):
  """A file whole or not at all."""
  temporary = path.with_suffix(".tmp")
  temporary.write_text(text)
  temporary.replace(path)


def _is_begun(workdir) -> bool:
  """Whether there is a checkpoint to go on from."""
  return any((workdir / "checkpoints").glob("[0-9]*"))


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
