"""Checkpoints of the state, with Orbax, which no other module imports."""

import concurrent.futures
import contextlib
import errno
import functools
import json
import logging
import pathlib
import shutil
import sys
import warnings
import zlib
from collections.abc import Mapping
from typing import Any

import jax

from albert_jax import files, strict_json
from albert_jax.errors import UserError, message_lines

log = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"
DECADES = 50 * 365 * 24 * 3600  # seconds
# Errors of opening or reading a file that say nothing about its contents.
PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM, errno.ESTALE, errno.ETIMEDOUT}


class Checkpoints:
  """The checkpoints of one run: one folder a step, written in the background, each visible only when complete."""

  def __init__(self, directory: str | pathlib.Path, keep: int, keep_every: int = 0, keep_best: bool = False):
    """Opens the folder of the checkpoints.

    Args:
      directory: an absolute path, or gs://BUCKET/FOLDER; created if absent.
      keep: how many of the newest are kept.
      keep_every: also keep those of every so many steps; 0: none.
      keep_best: also keep the one with the highest score.
    """
    self._directory, self._keeps = str(directory), (keep, keep_every, keep_best)
    self._background = concurrent.futures.ThreadPoolExecutor(1)
    self._sealed: concurrent.futures.Future | None = None
    # Importing Orbax takes a while, and a new run needs it only for its first save. With several hosts or a store,
    # errors should show now.
    self._orbax: Any = None  # a Checkpointer once `open` was called
    if not (jax.process_count() == 1 and not files.is_url(directory) and _made_empty(pathlib.Path(directory))):
      self.open()

  def open(self) -> Any:
    """Imports and starts Orbax, if it does not run yet; `save` does so too."""
    if self._orbax:
      return
    from orbax.checkpoint import v1 as ocp

    # Orbax logs a failure with its traceback, and so does asyncio for each array; here it is raised, in one line.
    for logger in ("absl", "asyncio"):
      logging.getLogger(logger).setLevel(logging.CRITICAL)
    _silence_late_errors()
    files.filesystem(self._directory)  # Configures the clients of stores, for Orbax too.
    _set_aside_unreadable(self._directory)
    # Orbax takes the time that a save has left from the clock, and a clock may jump; `watch.py` reports what hangs.
    patience = {"timeout_secs": DECADES} if jax.process_count() == 1 else {}
    with files.reaching(self._directory):
      self._orbax = ocp.training.Checkpointer(
        self._directory,
        context=ocp.Context(async_options=ocp.options.AsyncOptions(**patience)),
        preservation_policy=_kept(ocp.training.preservation_policies, *self._keeps),
        cleanup_tmp_directories=True,  # Of saves that were killed.
      )

  def latest(self) -> int | None:
    """Returns the newest step that is complete, or None."""
    return max(self._complete(), default=None)

  def steps(self) -> list[int]:
    """Returns all steps that are complete, in order."""
    self.wait()
    return sorted(self._complete())

  def _complete(self):
    return {checkpoint.step for checkpoint in self._orbax.checkpoints} if self._orbax else set()

  def forget_after(self, step: int) -> None:
    """Removes the checkpoints of later steps."""
    for later in self.steps():
      if later > step:
        self._delete(later)

  def note(self, step: int, name: str) -> str | None:
    """One of the notes saved with a checkpoint; None if there is no such note."""
    path = f"{self._directory}/{step}/{name}"
    return files.read(path).decode("utf-8", "replace") if files.exists(path) else None

  def save(
    self, step: int, state: dict, score: float | None = None, notes: Mapping[str, str | None] | None = None
  ) -> None:
    """Starts writing `state` and returns; does nothing if there is a checkpoint of this step.

    Args:
      step: the step of the state.
      state: arrays on devices.
      score: of the evaluation at this step, higher is better; None if it is not the best so far.
      notes: {file name: text} to save beside the state; None values are left out.

    Raises:
      OSError: the save before failed, or there is no space for this one.
    """
    self.wait()
    if self.latest() == step:
      return
    with self._plainly():
      self.open()
      self._room(sum(x.nbytes for x in jax.tree.leaves(state)))
    metrics = None if score is None else {"score": score}
    # Without `force` Orbax leaves a save out, silently, while the one before is still being written.
    start = functools.partial(self._orbax.save_async, step, force=True, metrics=metrics)
    if device := _reading_device():
      # The loop waits for the transfer alone. On CPUs there is none: these are views of the device's own memory, which
      # JAX does not reuse while a view exists.
      host_state = jax.device_get(state)

      def write():
        # As arrays of JAX's, which Orbax writes in one transaction; those of NumPy it copies, and writes one by one.
        start(jax.device_put(host_state, device)).result()

    else:
      with self._plainly(), _short_turns():
        write = start(state).result
    notes = {name: text for name, text in (notes or {}).items() if text is not None}
    arrays = len(jax.tree.leaves(state))
    self._sealed = self._background.submit(_seal, write, f"{self._directory}/{step}", arrays, notes)

  def restore(self, abstract: dict, shardings: dict, step: int | None = None) -> dict:
    """Restores the newest state that can be read. Damaged checkpoints after it are reported and removed.

    Args:
      abstract: the state as shapes.
      shardings: where its arrays are created; they may be of another mesh than the state was saved from.
      step: restores this one only.

    Raises:
      UserError: no checkpoint can be read.
      OSError: the store cannot be reached, or a checkpoint that is whole cannot be read now, for want of memory or open
        files; then none is removed.
    """
    target = jax.tree.map(
      lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract, shardings
    )
    self.wait()
    broken: dict[int, str] = {}
    steps = self._complete()
    candidates = steps if step is None else steps & {step}
    for step in sorted(candidates, reverse=True):
      folder, is_whole = f"{self._directory}/{step}", False
      try:
        is_whole = _verify(folder)
        # Where one that is whole cannot be read all the same, it is the store's fault.
        with files.reaching(folder if is_whole else ""):
          state = self._orbax.load(step, target)
      except (files.Unreachable, UserError):
        raise
      except Exception as error:  # Orbax and TensorStore raise many kinds for files that are cut or gone.
        if is_whole or getattr(error, "errno", None) in PASSING:
          raise OSError(
            f"the checkpoint {folder} could not be read, but is not damaged as far as one can see: "
            f"{_root(error)[:300]}; try again, or remove it to go on from the one before"
          ) from error
        broken[step] = _root(error)[:300]
        log.warning("The checkpoint of step %d cannot be used: %s", step, broken[step])
        continue
      for bad in broken:
        log.warning("Going on from step %d; removing the damaged checkpoint of step %d.", step, bad)
        self._delete(bad)
      return state
    raise UserError(f"no checkpoint in {self._directory} can be used: {broken}; start in a new --workdir")

  def _delete(self, step):
    with files.reaching(self._directory):
      self._orbax.delete(step)

  def close(self) -> None:
    """Waits for what is being written.

    Raises:
      OSError: the write failed.
    """
    try:
      self.wait()
    finally:
      self._background.shutdown()
      with contextlib.suppress(Exception):  # The line above has raised it already.
        if self._orbax:
          self._orbax.close()

  def _room(self, size):
    """

    Raises:
      OSError: the disk has less than `size` bytes free. Orbax would print a traceback for each array.
    """
    if files.is_url(self._directory):
      return
    # A file gets smaller than its arrays: by a tenth or so, by more where many moments are still zero.
    if (free := shutil.disk_usage(self._directory).free) < size / 2:
      raise OSError(f"it takes {size / 2**20:.1f} MiB, and there is room for {free / 2**20:.1f}; make room, and go on")

  def wait(self) -> None:
    """Waits for the checkpoint that is being written.

    Raises:
      OSError: the write failed.
    """
    if self._sealed is not None:
      sealed, self._sealed = self._sealed, None
      with self._plainly():
        sealed.result()

  @contextlib.contextmanager
  def _plainly(self):
    """Converts every error of a failed save to an OSError of one line."""
    try:
      yield
    except Exception as error:
      reason = message_lines(error)[-1][:300]
      raise OSError(f"a checkpoint in {self._directory} could not be written: {reason}") from error


def _set_aside_unreadable(directory):
  """Renames checkpoints whose metadata is no JSON: Orbax reads the metadata of all, and one of these would stop it."""
  if files.is_url(directory) or jax.process_index() > 0:
    return
  for path in pathlib.Path(directory).glob("[0-9]*/_CHECKPOINT_METADATA"):
    folder = path.parent
    if strict_json.loads_or_none(path.read_bytes()) is None:
      log.warning("The checkpoint %s is damaged, and is ignored; it is renamed to damaged-%s.", folder, folder.name)
      folder.replace(folder.with_name(f"damaged-{folder.name}"))


@functools.cache
def _silence_late_errors():
  """Suppresses tracebacks after a failed save: Orbax closes its event loop without waiting for the other arrays.

  Each array would print one, a hundred of them on a full disk, after the line that reports the failure.
  """
  previous_hook = sys.unraisablehook

  def hook(unraisable):
    coroutine_of = getattr(getattr(unraisable.object, "cr_code", None), "co_filename", "")
    if "orbax" not in coroutine_of and str(unraisable.exc_value) != "Event loop is closed":
      previous_hook(unraisable)

  sys.unraisablehook = hook
  warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


@contextlib.contextmanager
def _short_turns():
  """Shortens Python's thread switch interval to half a millisecond: a save starts many threads and waits for each."""
  interval = sys.getswitchinterval()
  sys.setswitchinterval(min(interval, 5e-4))
  try:
    yield
  finally:
    sys.setswitchinterval(interval)


def _root(error):
  """Returns the first line of the root cause: Orbax wraps it in an error about its own handlers."""
  while cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
    error = cause
  return message_lines(error)[0]


def _made_empty(folder):
  """Makes the folder if it is absent.

  Returns:
    Whether the folder is empty.
  """
  folder.mkdir(parents=True, exist_ok=True)
  return next(folder.iterdir(), None) is None


def _kept(policies, keep, keep_every, keep_best):
  """Orbax's preservation policy: the newest, every `keep_every` steps, and the best. `policies` is its module."""
  kept = [policies.LatestN(keep)]
  if keep_every:
    kept.append(policies.EveryNSteps(keep_every))
  if keep_best:
    best = policies.BestN(get_metric_fn=lambda m: m["score"], n=1, keep_checkpoints_without_metrics=False)
    kept.append(best)
  return policies.AnyPreservationPolicy(kept)


def _reading_device():
  """Returns the CPU device, from which a thread can write a copy of the state; None if the loop has to write it.

  Orbax spends some 50 ms on a state of a hundred arrays before the first byte is written.
  """
  if jax.process_count() > 1:
    return None  # The state is on all hosts, and Orbax synchronises them.
  try:
    return jax.local_devices(backend="cpu")[0]
  except RuntimeError:  # JAX_PLATFORMS names others only.
    return None


def _seal(write, folder, arrays, notes):
  """Adds notes and the checksums of all files to a complete and readable checkpoint.

  Args:
    write: () -> None, returns when the checkpoint is complete.
    folder: that of the checkpoint.
    arrays: how many there are in the state.
    notes: {file name: text}.

  Raises:
    OSError: the arrays cannot be found in the checkpoint.
  """
  write()
  if jax.process_index() > 0:
    return
  if not files.is_url(folder):
    _check_readable(folder, arrays)
  for name, text in notes.items():
    files.write(f"{folder}/{name}", text.encode())
  files.write(f"{folder}/{CHECKSUMS}", json.dumps(_checksums(folder)).encode())


def _check_readable(folder, arrays):
  """Opens the database of a checkpoint as a restore does, and looks for each array's shape and values.

  Raises:
    OSError: they are not there, though Orbax reported no error (as for a path that it takes for a pattern).
  """
  import tensorstore

  base = {"driver": "file", "path": f"{folder}/state/"}
  names = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result().list().result()
  shapes = {name.rpartition(b"/")[0] for name in names if name.endswith((b"/zarr.json", b"/.zarray"))}
  values = {name.partition(b"/")[0] for name in names if not name.endswith((b"/zarr.json", b"/.zarray"))}
  if len(shapes & values) < arrays:
    raise OSError(f"{folder} was written, but only {len(shapes & values)} of its {arrays} arrays can be read back")


def _verify(folder):
  """Returns whether all files are the ones that were written; False if that is not known.

  Raises:
    OSError: a file differs, or is missing.
  """
  path = f"{folder}/{CHECKSUMS}"
  if not files.exists(path):
    return False
  try:
    expected = dict(json.loads(files.read(path)))
  except (ValueError, TypeError, RecursionError):
    log.warning("%s is damaged; the checkpoint is read without it.", path)
    return False
  actual = _checksums(folder)
  if bad := sorted(name for name in {*expected, *actual} if expected.get(name) != actual.get(name)):
    raise OSError(f"damaged or missing: {', '.join(bad)}")
  return True


def _checksums(folder):
  """Returns {file: CRC-32 of its bytes} of all files of a checkpoint."""
  checksums = {}
  for name in files.everything(folder):
    if name != CHECKSUMS:
      crc = 0
      for block in files.blocks(f"{folder}/{name}"):
        crc = zlib.crc32(block, crc)
      checksums[name] = crc
  return checksums
