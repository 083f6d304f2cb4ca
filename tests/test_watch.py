"""Signals, hangs and profiles; in processes of their own, since they belong to the process."""

import os
import signal
import subprocess
import sys
import time

import pytest

from albert_jax import UserError
from albert_jax.training import watch


def python(code, during=None):
  process = subprocess.Popen(
    [sys.executable, "-W", "error", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
  )  # fmt: skip
  if during:
    assert process.stdout.readline() == "ready\n"
    during(process)
  out, err = process.communicate(timeout=120)
  return process.returncode, out, err


def test_a_hang_prints_stacks_and_goes_on_waiting():
  code = (
    "import time\nfrom albert_jax.training import watch\n"
    "def waits_for_ever(): time.sleep(3)\n"
    "with watch.hang_watchdog(0.5 / 60) as alive:\n  alive()\n  waits_for_ever()\n"
    "time.sleep(1)\nprint('went on')"
  )
  status, out, err = python(code)
  assert (status, out) == (0, "went on\n")
  assert err.count("Timeout (0:00:00.500000)!") >= 2
  assert "in waits_for_ever" in err


def test_without_a_hang_nothing_is_printed():
  code = (
    "import time\nfrom albert_jax.training import watch\n"
    "for minutes in (0, 4 / 60):\n"
    "  with watch.hang_watchdog(minutes) as alive:\n    for _ in range(30): alive(), time.sleep(0.05)\n"
  )
  assert python(code) == (0, "", "")


def test_stacks_can_be_asked_for():
  code = (
    "import time\nfrom albert_jax.training import watch\n"
    "with watch.hang_watchdog(0):\n  print('ready', flush=True)\n  time.sleep(2)\nprint('went on')"
  )
  status, out, err = python(code, lambda process: process.send_signal(signal.SIGUSR1))
  assert (status, out) == (0, "went on\n")
  assert "most recent call first" in err


def test_a_compiler_that_waits_for_itself_ends_the_process():
  code = "import time\nfrom albert_jax.training import watch\nwith watch.exit_when_idle(1, 'idle'):\n  time.sleep(60)"
  assert python(code) == (1, "", "idle\n")


def test_work_is_not_idle():
  code = (
    "import time\nfrom albert_jax.training import watch\n"
    "with watch.exit_when_idle(0.5, 'idle'):\n"
    "  end = time.monotonic() + 1.5\n  while time.monotonic() < end: pass\n"
    "time.sleep(1)\nprint('went on')"
  )
  assert python(code) == (0, "went on\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_request_to_stop_is_told_to_the_loop(number):
  code = (
    "import time\nfrom albert_jax.training import watch\n"
    "with watch.stop_requests(1) as asked:\n  assert asked() == ''\n  print('ready', flush=True)\n"
    "  while not asked(): time.sleep(0.01)\n  print(asked())"
  )
  status, out, err = python(code, lambda process: process.send_signal(number))
  assert (status, out, err) == (0, f"{number.name}\n", "")


def test_a_second_ctrl_c_means_now_and_an_echo_of_the_first_does_not():
  code = (
    "import signal, time\nfrom albert_jax.training import watch\nwatch.ECHO_SECONDS = 0.3\n"
    "with watch.stop_requests(1):\n  signal.raise_signal(signal.SIGINT)\n  signal.raise_signal(signal.SIGINT)\n"
    "  print('went on', flush=True)\n  time.sleep(0.4)\n  signal.raise_signal(signal.SIGINT)\n  print('and on')"
  )
  status, out, err = python(code)
  assert status != 0 and out == "went on\n" and "KeyboardInterrupt" in err


LOGS = "import logging, sys\nlogging.basicConfig(stream=sys.stderr, level='INFO', format='%(message)s')\n"


def test_a_request_to_stop_is_answered_at_once():
  code = (
    f"{LOGS}import signal, time\nfrom albert_jax.training import watch\n"
    "with watch.stop_requests(1) as asked:\n  signal.raise_signal(signal.SIGINT)\n  time.sleep(0.3)\n"
    "  print(asked())"
  )
  assert python(code) == (
    0, "SIGINT\n", "SIGINT: stopping after this step, and saving; Ctrl-C again stops at once, without saving\n",
  )  # fmt: skip


def test_a_second_ctrl_c_ends_a_run_that_is_in_native_code():
  code = (
    f"{LOGS}import ctypes, signal\nfrom albert_jax.training import watch\n"
    "watch.ECHO_SECONDS, watch.FORCE_SECONDS = 0.1, 0.3\n"
    "with watch.stop_requests(1):\n  print('ready', flush=True)\n"
    # A mutex that is locked twice waits for ever, and meanwhile Python calls no handler.
    "  libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)\n"
    "  print(libc.pthread_mutex_lock(mutex), libc.pthread_mutex_lock(mutex))"
  )

  def twice(process):
    for _ in range(2):
      time.sleep(0.4)
      process.send_signal(signal.SIGINT)

  status, _, err = python(code, twice)
  assert status == 130 and "interrupted; the same command resumes" in err


def test_steps_to_profile():
  assert watch.parse_steps("") is None
  assert watch.parse_steps("10:13") == (10, 13)
  for text in ("10", "13:10", "0:3", "a:b", "1:2:3"):
    with pytest.raises(UserError, match="must be FIRST:LAST"):
      watch.parse_steps(text)
