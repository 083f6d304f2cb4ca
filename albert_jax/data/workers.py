"""Worker processes end with the process that started them, and leave its signals to it."""

import multiprocessing
import os
import signal
import threading
from multiprocessing import resource_tracker

from albert_jax.signals import STOPPING


def start_memory_tracker() -> None:
  """Starts Python's process that frees shared memory with SIGHUP ignored. Python has it ignore the other signals."""
  if threading.current_thread() is threading.main_thread():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # Which a new process inherits.
    resource_tracker.ensure_running()
    signal.signal(signal.SIGHUP, before)


def exit_with_parent(ignores_sigterm: bool = False) -> None:
  """Makes this worker process exit when its parent process has ended, and leave signals to stop to the parent.

  Ctrl-C, a closed terminal and a scheduler reach all processes of a command. If the parent is killed, no other process
  ends its workers.

  Args:
    ignores_sigterm: False if the parent ends the worker by SIGTERM.
  """
  for number in STOPPING:
    if number != signal.SIGTERM or ignores_sigterm:
      signal.signal(number, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def wait():
    parent.join()
    os._exit(0)

  if parent:
    threading.Thread(target=wait, daemon=True).start()
