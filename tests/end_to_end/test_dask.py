"""`prepare --runner=beam` on a cluster of Dask: a worker that is killed in the middle costs nothing but time."""

import contextlib
import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import made_up
import pytest

from albert_jax.data.corpus import prepare, runners, segments, work_units

pytest.importorskip("distributed")
pytest.importorskip("apache_beam")
pytestmark = pytest.mark.slow

SECONDS = 240  # in which a cluster has to do what it is asked for
SETTINGS = segments.Settings(sentences="line", segment_tokens=64)


def contents(folder):
  return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def wait_until(condition, what):
  end = time.monotonic() + SECONDS
  while not condition():
    assert time.monotonic() < end, f"{what} took more than {SECONDS} s"
    time.sleep(0.02)


@pytest.fixture
def cluster(tmp_path):
  """Returns a scheduler and three workers on loopback: (the scheduler's file, the workers' processes)."""
  file = tmp_path / "scheduler.json"
  # Functions of this library are pickled by name, so the workers have to be able to import it.
  environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(prepare.__file__).parents[3])}
  with contextlib.ExitStack() as stack:
    log = stack.enter_context((tmp_path / "cluster.log").open("w"))

    def start(kind, *arguments):
      command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", f"--scheduler-file={file}", *arguments]
      process = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, env=environment)
      stack.callback(lambda: (process.kill(), process.wait()))
      return process

    start("scheduler", "--host=127.0.0.1", "--port=0", "--no-dashboard")
    wait_until(file.exists, "the start of the scheduler")
    yield file, [start("worker", "--host=127.0.0.1", "--nthreads=1", "--no-nanny", "--no-dashboard") for _ in range(3)]


def test_a_killed_worker_changes_nothing(tmp_path, cluster, monkeypatch):
  file, workers = cluster
  monkeypatch.setattr(work_units.plan, "__defaults__", (20_000,))  # So that there are many units.
  corpus = made_up.write(tmp_path / "a.txt", made_up.documents(800))
  spm = made_up.vocabulary(tmp_path)
  reading = work_units.Reading(layout="blank")
  prepare.prepare(str(corpus), spm, tmp_path / "local", SETTINGS, reading, run=runners.local(1))

  options = f"--runner=apache_beam.runners.dask.dask_runner.DaskRunner --dask_scheduler_file={file}"
  command = [
    sys.executable, "-c",
    "import sys; from albert_jax.data.corpus import prepare, readers, runners, segments; "
    "work_units.plan.__defaults__ = (20_000,); "
    "prepare.prepare(*sys.argv[1:4], segments.Settings(sentences='line', segment_tokens=64), "
    "work_units.Reading(layout='blank'), run=runners.beam(sys.argv[4]))",
    str(corpus), str(spm), str(tmp_path / "dask"), f"{options} --dask_partition_size=1",
  ]  # fmt: skip
  with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
    units = tmp_path / ".dask.partial" / "units"
    wait_until(lambda: len(list(units.glob("*.npz"))) > 5 or process.poll() is not None, "the first units")
    os.kill(workers[1].pid, signal.SIGKILL)
    assert process.poll() is None, process.stderr.read()
    assert not list(units.glob("*.copied.npz"))  # It was killed in the middle of the first step.
    _, errors = process.communicate(timeout=SECONDS)
  assert process.returncode == 0, errors[-2000:]
  assert workers[1].wait() == -signal.SIGKILL
  assert contents(tmp_path / "dask") == contents(tmp_path / "local")
