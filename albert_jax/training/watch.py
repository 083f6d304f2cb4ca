"""Signals, hangs, profiles and the end of multi-host runs."""

import contextlib
import faulthandler
import itertools
import logging
import os
import pathlib
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from albert_jax import signals
from albert_jax.errors import UserError, message_lines

log = logging.getLogger(__name__)

ECHO_SECONDS = 1.0  # in which a second Ctrl-C is the first one again: wrappers repeat what the terminal has sent
FORCE_SECONDS = 5.0  # after a second Ctrl-C, until the process exits by force
LEAVE_SECONDS = 20.0  # the time in which all hosts should reach an error that all of them see


@contextlib.contextmanager
def stop_requests(hosts: int) -> Iterator[Callable[[], str]]:
  """Turns Ctrl-C, SIGTERM and SIGHUP into requests to stop after the current step. A second Ctrl-C interrupts at once.

  The first signal is answered with a message, also during a compilation. If the second one has not ended the run after
  FORCE_SECONDS, because the main thread is in native code, the process exits without saving, as if it were killed.

  If only some hosts of a multi-host run get the signal, JAX finds a step at which all of them stop.

  Yields:
    A function to call after each step; it returns the reason to stop, or '' to continue.
  """
  if hosts > 1:
    calls = itertools.count(1)  # Not the run's steps: they may go back, and these must not.
    yield lambda: "a notice of preemption" if multihost_utils.reached_preemption_sync_point(next(calls)) else ""
    return
  received: list[tuple[str, float]] = []
  noticed: list[float] = []
  ended = threading.Event()

  def note(number, _):
    if received and number == signal.SIGINT and time.monotonic() > received[0][1] + ECHO_SECONDS:
      raise KeyboardInterrupt  # The second Ctrl-C interrupts at once.
    received.append((signal.Signals(number).name, time.monotonic()))

  def notice(number):
    if not noticed:
      noticed.append(time.monotonic())
      again = "; Ctrl-C again stops at once, without saving" if number == signal.SIGINT else ""
      log.info("%s: stopping after this step, and saving%s", signal.Signals(number).name, again)
    elif number == signal.SIGINT and time.monotonic() > noticed[0] + ECHO_SECONDS and not ended.wait(FORCE_SECONDS):
      log.info("interrupted; the same command resumes from the last checkpoint")
      os._exit(128 + number)

  with signals.handled(note), signals.watched(notice):
    try:
      yield lambda: received[0][0] if received else ""
    finally:
      ended.set()


@contextlib.contextmanager
def exit_on_error(hosts: int) -> Iterator[None]:
  """On an unexpected error, exits immediately with code 1 if the run has several hosts.

  A clean shutdown would deadlock: it waits for the other hosts, and they wait for this one.
  """
  try:
    yield
  except (UserError, FloatingPointError):
    raise  # All hosts see most of these; see `leave_cluster_on_error`.
  except Exception as error:
    if hosts == 1:
      raise
    if not isinstance(error, jax.errors.JaxRuntimeError | OSError):
      traceback.print_exc()
    print(
      f"albert-jax: host {jax.process_index()} of {hosts} ends: {message_lines(error)[0][:300]}. If there is "
      "no other message, another host has failed. Start all of them again: they resume from the last checkpoint.",
      file=sys.stderr, flush=True,
    )  # fmt: skip
    os._exit(1)


@contextlib.contextmanager
def leave_cluster_on_error() -> Iterator[None]:
  """On an error in a multi-host run, waits LEAVE_SECONDS for the other hosts to fail too, then exits alone.

  JAX would wait five minutes for them before it reports anything.
  """
  try:
    yield
  except BaseException as error:
    if jax.distributed.is_initialized():
      leaving = threading.Thread(target=_leave, daemon=True)
      leaving.start()
      leaving.join(LEAVE_SECONDS)
      if leaving.is_alive():
        print(f"albert-jax train: {message_lines(error)[0]} (on this host, not on all)", file=sys.stderr, flush=True)
        os._exit(2 if isinstance(error, UserError) else 1)
    raise


def _leave():
  with contextlib.suppress(Exception):
    jax.distributed.shutdown()


@contextlib.contextmanager
def hang_watchdog(minutes: float) -> Iterator[Callable[[], None]]:
  """Prints the stack of every thread to stderr on SIGUSR1, and whenever `minutes` pass without a step.

  Args:
    minutes: 0 for never.

  Yields:
    A function to be called after each step.
  """
  if sys.__stderr__ is not None:  # It is where a program is started with its standard error closed.
    faulthandler.register(signal.SIGUSR1, file=sys.__stderr__, all_threads=True)
  armed = -1.0

  def alive():
    nonlocal armed
    if minutes and time.monotonic() > armed + min(1.0, minutes * 6):  # Arming starts a thread; not for each short step.
      faulthandler.dump_traceback_later(minutes * 60, repeat=True, file=sys.__stderr__)
      armed = time.monotonic()

  try:
    alive()
    yield alive
  finally:
    faulthandler.cancel_dump_traceback_later()
    faulthandler.unregister(signal.SIGUSR1)


@contextlib.contextmanager
def exit_when_idle(seconds: float, message: str) -> Iterator[None]:
  """Ends the process with code 1 if it uses no processor time for `seconds`, as a compiler that waits for itself does.

  Args:
    seconds: of less than a hundredth of a core.
    message: one line to print then.
  """
  is_over = threading.Event()

  def others():  # Processor time of all threads but the one that watches.
    return time.process_time() - time.thread_time()

  def watch():
    since, used = time.monotonic(), others()
    while not is_over.wait(seconds / 20):
      if others() - used > (time.monotonic() - since) / 100 or _is_waiting_for_a_core():
        since, used = time.monotonic(), others()
      elif time.monotonic() - since > seconds:
        print(message, file=sys.stderr, flush=True)
        os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
  try:
    yield
  finally:
    is_over.set()


def _is_waiting_for_a_core():
  """Returns whether another thread of this process could run: it has no processor time because others have it."""
  states = []
  for path in pathlib.Path("/proc/self/task").glob("*/stat"):  # Linux
    if path.parent.name != str(threading.get_native_id()):
      with contextlib.suppress(OSError):
        states.append(path.read_text().rpartition(") ")[2][:1])
  return "R" in states or "D" in states


@contextlib.contextmanager
def profiler(steps: tuple[int, int] | None, folder: pathlib.Path) -> Iterator[Callable[[int, Any], None]]:
  """Writes a profile of some steps, for TensorBoard's profile page or xprof.

  Args:
    steps: the first and the last, or None for no profile.
    folder: where to write it.

  Yields:
    A function to be called before each step, with the step and any value that waits for the step before.
  """
  is_on = False

  def before_step(step, newest):
    nonlocal is_on
    if steps and step == steps[0]:
      jax.profiler.start_trace(str(folder))
      is_on = True
    elif is_on and step == steps[1] + 1:
      jax.block_until_ready(newest)
      stop()

  def stop():
    nonlocal is_on
    is_on = False
    jax.profiler.stop_trace()
    log.info("The profile of steps %d to %d is in %s", *steps, folder)

  try:
    yield before_step
  finally:
    if is_on:
      stop()


def parse_steps(text: str) -> tuple[int, int] | None:
  """Parses "10:13" as (10, 13), and '' as None.

  Raises:
    UserError: the text is neither.
  """
  if not text:
    return None
  first, _, last = text.partition(":")
  if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
    raise UserError(f"--profile={text} must be FIRST:LAST, steps counted from 1, as --profile=10:13")
  return int(first), int(last)
