"""`albert-jax COMMAND …`: runs a command, and prints its failures as one line."""

import atexit
import contextlib
import errno
import gc
import importlib
import os
import signal
import sys
import time
import traceback

import albert_jax
from albert_jax import signals
from albert_jax.commands import COMMANDS
from albert_jax.errors import UserError, did_you_mean, masked, one_line

TRACEBACK = "ALBERT_JAX_TRACEBACK"
_ROOM = "make room, or write to another disk, and run the same command again"
REMEDIES = {  # What to do about an error of the system.
  errno.ENOSPC: _ROOM,
  errno.EDQUOT: _ROOM,
  errno.EFBIG: "files have a limit in this shell; raise it with: ulimit -f unlimited",
}
CLEANING_SECONDS = 5.0  # during which more signals do not interrupt the removal of temporary files


def main(argv: list[str] | None = None) -> int:
  """Runs a command.

  Args:
    argv: the arguments after `albert-jax`; None takes those of the process.

  Returns:
    the exit code: 0 for success, 1 for a failure, 2 for what the user can correct, 130 after Ctrl-C, 143 after SIGTERM,
    129 after SIGHUP.
  """
  if (code := _check_streams()) is not None:
    return code
  is_program = argv is None
  if is_program:  # What is registered first runs last, when Python is about to drop its handlers.
    atexit.register(_handle_all, signal.SIG_IGN)
  argv = sys.argv[1:] if is_program else argv
  try:
    code = _run(argv)
    sys.stdout.flush()
    if is_program and code > 128:  # After one signal, more of them end a slow exit, without a traceback.
      _handle_all(lambda *_: os._exit(code))
    return code
  except BrokenPipeError:
    return _without_stdout("the program that reads standard output has ended")
  except OSError as error:
    return _without_stdout(f"standard output cannot be written to: {error.strerror}")


def _run(argv) -> int:
  if not argv or argv[0] in ("-h", "--help", "help"):
    listed = "\n".join(f"  {name:<11}{purpose}" for name, purpose in COMMANDS.items())
    print(f"usage: albert-jax COMMAND [--help] …\n       albert-jax --version\n\ncommands:\n{listed}\n")
    print("example:\n  albert-jax doctor\n\nalbert-jax COMMAND --help shows the flags of a command and an example.")
    return 0 if argv else 2
  if argv[0] in ("--version", "version"):
    print(f"albert-jax {albert_jax.__version__}")
    return 0
  command = argv[0]
  try:
    with signals.handled(_stop_handler()):
      return _run_command(command, argv[1:])
  except KeyboardInterrupt as error:
    number = error.args[0] if isinstance(error, _Stop) else signal.SIGINT
    message = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    return _failed(command, message, 128 + number)
  except BrokenPipeError:
    raise
  except UserError as error:
    return _failed(command, masked(str(error)), 2)
  except Exception as error:
    expected = isinstance(error, OSError | FloatingPointError)
    hint = "" if expected or _wants_traceback() else f" ({TRACEBACK}=1 shows where)"
    if isinstance(error, OSError) and error.errno in REMEDIES:
      hint = f"; {REMEDIES[error.errno]}"
    return _failed(command, f"{one_line(error)}{hint}", 1)


def _run_command(command, argv) -> int:
  from albert_jax.commands import common  # Here, so that a signal during its imports is one line too.

  if command not in COMMANDS:
    hint = did_you_mean(command, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
    print(f"albert-jax: no command {masked(command)!r}{hint}", file=sys.stderr)
    return 2
  common.keep_compiled()
  common.quiet_libtpu()
  if command in ("train", "evaluate", "predict", "serve"):
    common.keep_memory()
    # Tracing makes many long-lived objects; collecting garbage among them is slow and finds little.
    gc.set_threshold(100_000)
  with common.show_messages():
    return _imported(f"albert_jax.commands.{command}").main(argv) or 0


def _handle_all(handler):
  for number in signals.STOPPING:
    signal.signal(number, handler)


class _Stop(KeyboardInterrupt):
  """A signal asked the process to stop. Its temporary files are removed, as after any error."""


def _stop_handler():
  """Returns a signal handler that raises `_Stop`, and ignores more signals while temporary files are removed."""
  ignored_until = 0.0

  def stop(number, _):
    nonlocal ignored_until
    if time.monotonic() >= ignored_until:
      ignored_until = time.monotonic() + CLEANING_SECONDS
      raise _Stop(number)

  return stop


def _failed(command, message, code):
  """Prints the one line of a failure, after its traceback if the environment asks for it; returns the exit code."""
  if _wants_traceback():
    traceback.print_exc()
  print(f"albert-jax {command}: {message}", file=sys.stderr)
  return code


def _wants_traceback():
  return os.environ.get(TRACEBACK, "") not in ("", "0")


def _check_streams():
  """Returns the exit code if a standard stream is closed, else None.

  A file that is opened later would get the number of the closed stream, and libraries would print into it.
  """
  for number, stream, name in ((2, sys.stderr, "error"), (1, sys.stdout, "output")):
    if stream is None:
      message = f"albert-jax: standard {name} is closed; send it to a file, or to /dev/null\n"
      with contextlib.suppress(OSError):
        os.write(1 if number == 2 else 2, message.encode())
      return 1
  if sys.stdin is None:
    sys.stdin = open(os.devnull)  # noqa: SIM115  Takes number 0, which was closed.
  return None


def _without_stdout(message):
  """Returns the exit code after standard output failed. Python would fail once more when it flushes at exit."""
  with contextlib.suppress(OSError):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
  with contextlib.suppress(OSError):
    print(f"albert-jax: {message}", file=sys.stderr)
  return 1


def _imported(module):
  """Imports a module with garbage collection off; the objects it makes are never collected."""
  gc.disable()
  try:
    return importlib.import_module(module)
  finally:
    gc.freeze()
    gc.enable()


if __name__ == "__main__":
  sys.exit(main())
