"""What comes from outside while a run goes on: a request to stop, a hang, a wish to look inside."""

import contextlib
import faulthandler
import itertools
import os
import signal
import sys
import threading
import time
import traceback

import jax
from jax.experimental import multihost_utils

from albert_jax.errors import UserError, message_lines

PARTING = 20.0  # seconds in which hosts that all see an error should have come to it


@contextlib.contextmanager
def asked_to_stop(hosts: int):
  """Yields a function, to be called after each step, that says why to stop if SIGTERM or Ctrl-C has come; else ''.

  Of several hosts only some may be told. JAX then finds a step at which all of them stop.
  """
  if hosts > 1:
    calls = itertools.count(1)  # Not the run's steps: they may go back, and these must not.
    yield lambda: "a notice of preemption" if multihost_utils.reached_preemption_sync_point(next(calls)) else ""
    return
  asked = []

  def note(number, _):
    if asked and number == signal.SIGINT:
      raise KeyboardInterrupt  # The second Ctrl-C means now.
    asked.append(signal.Signals(number).name)

  before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield lambda: asked[0] if asked else ""
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


@contextlib.contextmanager
def together(hosts: int):
  """Of several hosts none goes on alone: one on which something breaks, such as the word from another that is gone,
  ends at once with code 1. Going out in good order would wait for the others, and they for this one."""
  try:
    yield
  except (UserError, FloatingPointError):
    raise  # Most of these all hosts see; see `parting`.
  except Exception as error:
    if hosts == 1:
      raise
    if not isinstance(error, jax.errors.JaxRuntimeError | OSError):
      traceback.print_exc()
    print(
      f"albert-jax: host {jax.process_index()} of {hosts} ends: {message_lines(error)[0][:300]}. If nothing "
      "else says why, another host is gone. Start all of them again: they go on from the last checkpoint.",
      file=sys.stderr, flush=True,
    )  # fmt: skip
    os._exit(1)


@contextlib.contextmanager
def parting():
  """One of several hosts that ends with an error gives the others `PARTING` to end with it, and then goes alone.

  JAX would wait for them for five minutes before a word was said, and they for this one.
  """
  try:
    yield
  except BaseException as error:
    if jax.distributed.is_initialized():
      leaving = threading.Thread(target=_leave, daemon=True)
      leaving.start()
      leaving.join(PARTING)
      if leaving.is_alive():
        print(f"albert-jax train: {message_lines(error)[0]} (on this host, not on all)", file=sys.stderr, flush=True)
        os._exit(2 if isinstance(error, UserError) else 1)
    raise


def _leave():
  with contextlib.suppress(Exception):
    jax.distributed.shutdown()


@contextlib.contextmanager
def stacks(minutes: float):
  """Prints what every thread is doing to stderr on SIGUSR1, and whenever `minutes` (0: never) pass without a step.

  Yields: a function to be called after each step.
  """
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
def trace(steps: tuple[int, int] | None, folder):
  """Yields a function to be called before each step, which writes a profile of those from the first to the last.

  Args: steps: (first, last) or None. folder: for TensorBoard's profile page, or xprof.
  """
  is_on = False

  def look(step, newest):
    """Args: newest: anything that waits for the step before."""
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
    print(f"The profile of steps {steps[0]} to {steps[1]} is in {folder}", file=sys.stderr)

  try:
    yield look
  finally:
    if is_on:
      stop()


def parse_steps(text: str) -> tuple[int, int] | None:
  """ "10:13" as (10, 13); '' as None."""
  if not text:
    return None
  first, _, last = text.partition(":")
  if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
    raise UserError(f"--profile={text} must be FIRST:LAST, steps counted from 1, as --profile=10:13")
  return int(first), int(last)
