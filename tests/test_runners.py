"""Worker processes of `prepare`: what happens when they, or the process that started them, are asked to end."""

import os
import signal
import subprocess
import sys
import time

import pytest

from albert_jax.data.corpus import runners


def test_a_worker_that_dies_is_one_line():
  with pytest.raises(OSError, match="a worker process of --workers=2 ended before its work was done"):
    runners.local(2)(os._exit, [(1,), (1,)], [1, 1], "work")


LONG_JOBS = """
import signal, subprocess, sys
from albert_jax.data.corpus import runners
signal.signal(signal.SIGINT, signal.default_int_handler)
job = (["sh", "-c", 'trap "" INT; touch "$0.$$"; exec sleep 300 >&- 2>&-'],)
try:
  runners.local(2)(subprocess.run, [([*job[0], sys.argv[1] + i],) for i in "ab"], [1, 1], "work")
except KeyboardInterrupt:
  sys.exit("interrupted")
"""


@pytest.fixture
def running(tmp_path):
  """Starts a process whose two workers have long jobs, in a process group of its own."""
  command = [sys.executable, "-c", LONG_JOBS, str(tmp_path / "job")]
  process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
  deadline = time.monotonic() + 120
  while len(list(tmp_path.iterdir())) < 2:
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.05)
  yield process
  os.killpg(process.pid, signal.SIGKILL)


def test_ctrl_c_ends_the_workers_in_silence(running):
  os.killpg(running.pid, signal.SIGINT)
  _, errors = running.communicate(timeout=60)  # The workers hold standard error too, so all of them have ended.
  assert errors.strip().splitlines()[-1] == "interrupted"
  assert "Traceback" not in errors


def test_workers_end_with_a_process_that_is_killed(running):
  os.kill(running.pid, signal.SIGKILL)
  running.communicate(timeout=60)
