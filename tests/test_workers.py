"""Worker processes, and Python's own one that frees shared memory; in processes of their own, since signals are."""

import pathlib
import subprocess
import sys


def test_a_closed_terminal_does_not_end_the_process_that_frees_shared_memory():
  program = """if True:
    import os, signal, time
    from multiprocessing import shared_memory
    from albert_jax.data.workers import start_memory_tracker
    start_memory_tracker()
    memory = shared_memory.SharedMemory(create=True, size=8)
    signal.signal(signal.SIGHUP, lambda *_: print(memory.name))
    os.killpg(0, signal.SIGHUP)
    time.sleep(0.2)
    memory.close()"""  # The tracker frees it without a warning.
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, start_new_session=True, check=False
  )
  assert (done.returncode, done.stderr) == (0, "")
  assert done.stdout and not pathlib.Path("/dev/shm", done.stdout.strip()).exists()
