"""Worker processes end with the process that started them, and leave its signals to it."""

import multiprocessing
import os
import signal
import threading
from multiprocessing import resource_tracker

from albert_jax.signals import STOPPING


def start_memory_tracker() -> None:
  """Starts Python's process that frees shared memory, so that a closed terminal does not end it.

  Python has it ignore the other signals. It frees what a killed worker has left without a warning, since the command
  reports the worker.
  """
  if threading.current_thread() is threading.main_thread():
    before, warnings = signal.signal(signal.SIGHUP, signal.SIG_IGN), os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = "ignore"  # A new process inherits both.
    resource_tracker.ensure_running()
    signal.signal(signal.SIGHUP, before)
    del os.environ["PYTHONWARNINGS"]
    os.environ |= {"PYTHONWARNINGS": warnings} if warnings is not None else {}


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
