"""Signals that ask a process to stop: Ctrl-C, SIGTERM, and SIGHUP, which a closed terminal sends."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def handled(handler: Callable) -> Iterator[None]:
  """Calls `handler` for the signals that ask this process to stop; restores their handlers at the end.

  SIGHUP stays ignored if it is, as under `nohup`. Does nothing outside of the main thread, which alone gets signals.

  Args:
    handler: a function (number, frame), as for signal.signal.
  """
  before: dict = {}
  if threading.current_thread() is threading.main_thread():
    is_detached = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    before = {number: signal.signal(number, handler) for number in STOPPING[: 2 if is_detached else 3]}
  try:
    yield
  finally:
    for number, previous in before.items():
      signal.signal(number, previous)


@contextlib.contextmanager
def watched(notice: Callable[[int], None]) -> Iterator[None]:
  """Calls `notice` in another thread as soon as this process is asked to stop.

  Python calls a handler only after the main thread has returned from native code, such as a compilation of a minute.
  Does nothing outside of the main thread.

  Args:
    notice: a function (number of the signal). The signal needs a handler, see `handled`.
  """
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  reader, writer = os.pipe()
  os.set_blocking(writer, False)

  def watch():
    while number := os.read(reader, 1):  # Nothing: the writer is closed.
      if number[0] in STOPPING:
        notice(number[0])
    os.close(reader)

  previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  threading.Thread(target=watch, daemon=True).start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(previous)
    os.close(writer)
