"""Signals that ask a process to stop: Ctrl-C, SIGTERM, and SIGHUP, which a closed terminal sends."""

import contextlib
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
