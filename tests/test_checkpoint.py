"""Checkpoints that were damaged, cut, or never finished: the run goes on from the one before, and says so."""

import errno
import gc
import itertools
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from albert_jax import files
from albert_jax.errors import UserError
from albert_jax.training import checkpoint
from albert_jax.training.checkpoint import Checkpoints


def state(step, arrays=1):
  keys = jax.random.split(jax.random.key(step), arrays)
  return {
    "step": jnp.int32(step),
    "params": {f"w{i}": jax.random.normal(key, (300, 300)) for i, key in enumerate(keys)},
  }


def restore(folder, arrays=1):
  saved = Checkpoints(folder, 5)
  abstract = jax.eval_shape(lambda: state(0, arrays))
  try:
    return saved.restore(abstract, jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), abstract))
  finally:
    saved.close()


@pytest.fixture
def folder(tmp_path):
  saved = Checkpoints(tmp_path / "checkpoints", 3)
  for step in (1, 2, 3, 4):
    saved.save(step, state(step))
  saved.save(4, state(5))  # There already.
  saved.close()
  return tmp_path / "checkpoints"


def largest_file(folder):
  return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_the_newest_few_are_kept_and_the_newest_is_read(folder):
  assert sorted(path.name for path in folder.iterdir()) == ["2", "3", "4"]
  restored = restore(folder)
  assert int(restored["step"]) == 4
  np.testing.assert_array_equal(restored["params"]["w0"], state(4)["params"]["w0"])


def test_a_clock_that_jumps_by_a_year_does_not_end_a_save(tmp_path, monkeypatch):
  from orbax.checkpoint._src.futures import future

  year = 365 * 24 * 3600
  clock = itertools.count(1e9, year)
  monkeypatch.setattr(future, "time", types.SimpleNamespace(time=lambda: next(clock)))
  saved = Checkpoints(tmp_path / "checkpoints", 3)
  saved.save(1, state(1))
  saved.close()
  assert next(clock) > 1e9 + year  # Orbax did ask for the time.
  assert int(restore(tmp_path / "checkpoints")["step"]) == 1


def test_a_save_that_the_loop_starts_is_the_same_and_leaves_threads_their_usual_turns(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint, "_reading_device", lambda: None)  # As on several hosts.
  usual = sys.getswitchinterval()
  saved = Checkpoints(tmp_path, 1)
  saved.save(1, state(1))
  assert sys.getswitchinterval() == usual
  saved.close()
  jax.tree.map(np.testing.assert_array_equal, restore(tmp_path), state(1))


def flip_a_bit(folder):
  path = largest_file(folder)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def cut(folder):
  path = largest_file(folder)
  path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize("damage", [flip_a_bit, cut, lambda folder: largest_file(folder).unlink()])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(folder, damage, caplog):
  damage(folder / "4")
  restored = restore(folder)
  assert int(restored["step"]) == 3
  np.testing.assert_array_equal(restored["params"]["w0"], state(3)["params"]["w0"])
  assert "Going on from step 3; removing the damaged checkpoint of step 4" in caplog.text
  assert not (folder / "4").exists()


def test_one_that_was_killed_before_it_was_sealed_is_believed(folder):
  (folder / "4" / "checksums.json").unlink()
  assert int(restore(folder)["step"]) == 4


def test_what_a_killed_run_left_half_written_is_not_there(folder):
  (folder / "5.orbax-checkpoint-tmp-1").mkdir()
  assert int(restore(folder)["step"]) == 4


def test_when_none_can_be_used_it_says_why(folder):
  for step in (2, 3, 4):
    flip_a_bit(folder / str(step))
  with pytest.raises(UserError, match=r"no checkpoint in .* can be used.*damaged or missing"):
    restore(folder)


def test_a_save_that_fails_is_one_plain_error(tmp_path, monkeypatch):
  saved = Checkpoints(tmp_path, 3)
  saved.save(1, state(1))

  def full(*args, **kwargs):
    raise ValueError("RESOURCE_EXHAUSTED: many\nlines: No space left on device")

  monkeypatch.setattr(saved._orbax, "save_async", full)
  saved.save(2, state(2))  # In the background.
  with pytest.raises(OSError, match="could not be written: lines: No space left on device"):
    saved.save(3, state(3))
  monkeypatch.setattr(jax, "process_count", lambda: 2)  # Then it is started by the loop.
  with pytest.raises(OSError, match="could not be written: lines: No space left on device"):
    saved.save(3, state(3))
  monkeypatch.undo()
  saved.close()
  assert int(restore(tmp_path)["step"]) == 1


def coroutine(file):
  return types.SimpleNamespace(cr_code=types.SimpleNamespace(co_filename=file))


def test_arrays_that_come_too_late_after_a_failure_say_nothing(monkeypatch):
  messages = []
  monkeypatch.setattr(sys, "unraisablehook", messages.append)
  checkpoint._silence_late_errors.__wrapped__()
  for text, source in (
    ("Event loop is closed", None),
    ("an array", coroutine("site-packages/orbax/checkpoint/handlers.py")),
    ("something else", None),
    ("a coroutine", coroutine("notebook.py")),
  ):
    sys.unraisablehook(types.SimpleNamespace(exc_value=RuntimeError(text), object=source))
  assert [str(unraisable.exc_value) for unraisable in messages] == ["something else", "a coroutine"]


@pytest.mark.parametrize("file", ["manifest.ocdbt", "_METADATA", "ocdbt.process_0/d/*", "array_metadatas/process_0"])
def test_damage_that_only_the_load_finds_is_said_in_two_lines(tmp_path, file, capfd, caplog):
  saved = Checkpoints(tmp_path, 2)
  for step in (1, 2):
    saved.save(step, state(step, arrays=60))
  saved.close()
  (tmp_path / "2" / "checksums.json").unlink()
  (path,) = (tmp_path / "2" / "state").glob(file)
  path.write_bytes(bytes(byte ^ 0x5A for byte in path.read_bytes()))
  assert int(restore(tmp_path, arrays=60)["step"]) == 1
  gc.collect()  # What a failure leaves behind is heard of when it is thrown away.
  first, second = caplog.messages
  assert first.startswith("The checkpoint of step 2 cannot be used: ") and "handler" not in first
  assert second == "Going on from step 1; removing the damaged checkpoint of step 2."
  assert not capfd.readouterr().err


@pytest.mark.parametrize("reader", ["its files", "Orbax"])
def test_what_passes_costs_no_checkpoint(folder, reader, monkeypatch, capsys):
  def too_many(*args):
    raise OSError(errno.EMFILE, "Too many open files")

  saved = Checkpoints(folder, 5)
  if reader == "Orbax":
    monkeypatch.setattr(saved._orbax, "load", too_many)
  else:
    monkeypatch.setattr(files, "blocks", too_many)
  abstract = jax.eval_shape(lambda: state(0))
  with pytest.raises(OSError, match=r"/4 could not be read, but is not damaged .*Too many open files; try again"):
    saved.restore(abstract, jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), abstract))
  saved.close()
  monkeypatch.undo()
  assert int(restore(folder)["step"]) == 4
  assert not capsys.readouterr().err


def test_where_there_is_no_room_nothing_is_begun(tmp_path, monkeypatch):
  saved = Checkpoints(tmp_path, 3)
  saved.save(1, state(1))
  saved.steps()
  monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=2**16))
  with pytest.raises(OSError, match=r"could not be written: it takes 0\.3 MiB, and there is room for 0\.1"):
    saved.save(2, state(2))
  saved.close()
  assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_what_is_saved_may_be_donated_at_once(tmp_path):
  saved = Checkpoints(tmp_path, 3)
  saved_state = state(1)
  expected = jax.tree.map(np.array, saved_state)
  saved.save(1, saved_state)
  overwritten = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)(saved_state)
  saved.close()
  assert not np.asarray(overwritten["params"]["w0"]).any()
  jax.tree.map(np.testing.assert_array_equal, restore(tmp_path), expected)


def test_notes_lie_beside_the_state_and_are_checked_too(tmp_path, caplog):
  saved = Checkpoints(tmp_path, 3)
  saved.save(1, state(1), notes={"run.json": "one"})
  saved.save(2, state(2), notes={"run.json": "two"})
  saved.close()
  saved = Checkpoints(tmp_path, 3)
  assert [saved.note(step, "run.json") for step in (1, 2, 3)] == ["one", "two", None]
  assert saved.note(1, "other") is None
  saved.close()
  (tmp_path / "2" / "run.json").write_text("three")
  assert int(restore(tmp_path)["step"]) == 1
  assert "damaged or missing: run.json" in caplog.text


def test_later_ones_are_forgotten_and_can_be_written_again(folder):
  saved = Checkpoints(folder, 5)
  assert saved.steps() == [2, 3, 4]
  saved.forget_after(2)
  assert saved.steps() == [2]
  saved.save(3, state(9))
  saved.close()
  restored = restore(folder)
  np.testing.assert_array_equal(restored["params"]["w0"], state(9)["params"]["w0"])


def test_the_best_and_every_so_manyth_stay(tmp_path):
  saved = Checkpoints(tmp_path, 1, keep_every=4, keep_best=True)
  for step, score in ((1, None), (2, 0.5), (3, 0.7), (4, None), (5, 0.6), (6, None), (7, None)):
    saved.save(step, state(step), score)
  saved.close()
  assert sorted(path.name for path in tmp_path.iterdir()) == ["3", "4", "7"]


def in_bucket(steps=(1, 2, 3)):
  saved = Checkpoints("gs://bucket/run/checkpoints", 2)
  for step in steps:
    saved.save(step, state(step), notes={"run.json": str(step)})
  saved.close()


def test_in_a_bucket_it_is_the_same(bucket, caplog):
  in_bucket()
  assert {name.split("/")[2] for name in bucket.names("run/")} == {"2", "3"}
  restored = restore("gs://bucket/run/checkpoints")
  np.testing.assert_array_equal(restored["params"]["w0"], state(3)["params"]["w0"])
  largest = max(bucket.names("run/checkpoints/3/"), key=lambda name: len(bucket.objects["bucket"][name][1]))
  number, data = bucket.objects["bucket"][largest]
  bucket.objects["bucket"][largest] = number, data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
  restored = restore("gs://bucket/run/checkpoints")
  np.testing.assert_array_equal(restored["params"]["w0"], state(2)["params"]["w0"])
  assert "Going on from step 2; removing the damaged checkpoint of step 3" in caplog.text
  assert not bucket.names("run/checkpoints/3/")
  saved = Checkpoints("gs://bucket/run/checkpoints", 2)
  assert saved.note(2, "run.json") == "2" and saved.note(2, "other") is None
  saved.close()


@pytest.mark.parametrize("reading", ["GET /download/", "GET /storage/.*alt=media"])  # Checksums, and TensorStore.
def test_a_bucket_that_cannot_be_reached_costs_no_checkpoint(bucket, reading):
  in_bucket()
  before = bucket.names()
  bucket.refuse = reading, 418
  with pytest.raises(OSError, match="could not be reached"):
    restore("gs://bucket/run/checkpoints")
  assert bucket.names() == before


def test_what_a_killed_run_left_half_written_in_a_bucket_is_not_there(bucket):
  in_bucket()
  for name in bucket.names("run/checkpoints/3/"):
    if "commit_success" in name or "checksums" in name:
      del bucket.objects["bucket"][name]
  assert int(restore("gs://bucket/run/checkpoints")["step"]) == 2
  assert not bucket.names("run/checkpoints/3/")


def test_a_checkpoint_that_cannot_be_read_back_is_an_error(tmp_path):
  """Orbax takes the path for a pattern, merges nothing, and reports no error."""
  saved = Checkpoints(tmp_path / "run [a]", 3)
  saved.save(1, state(1))
  with pytest.raises(OSError, match=r"only 0 of its .* arrays can be read back"):
    saved.close()
