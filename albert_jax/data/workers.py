"""Worker processes end with the process that started them, and leave its signals to it."""

import multiprocessing
import os
import signal
import threading


def exit_with_parent(*ignored: signal.Signals) -> None:
  """Makes this worker process ignore signals, and exit when its parent process has ended.

  Ctrl-C and the signals of a scheduler reach all processes of a command. If the parent is killed, no other process ends
  its workers.

  Args:
    ignored: the signals that only the parent handles.
  """
  for number in ignored:
    signal.signal(number, signal.SIG_IGN)
  parent = multiprocessing.parent_process()

  def wait():
    parent.join()
    os._exit(0)

  if parent:
    threading.Thread(target=wait, daemon=True).start()
