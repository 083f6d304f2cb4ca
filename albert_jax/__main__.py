"""`albert-jax COMMAND …`: runs a command, and prints its failures as one line."""

import contextlib
import gc
import importlib
import os
import signal
import sys
import threading
import traceback

import albert_jax
from albert_jax.commands import COMMANDS, common
from albert_jax.errors import UserError, masked, one_line

TRACEBACK = "ALBERT_JAX_TRACEBACK"


def main(argv: list[str] | None = None) -> int:
  """Runs a command.

  Args:
    argv: the arguments after `albert-jax`; None takes those of the process.

  Returns:
    the exit code: 0 for success, 1 for a failure, 2 for what the user can correct, 130 after Ctrl-C, 143 after SIGTERM.
  """
  if (code := _check_streams()) is not None:
    return code
  argv = sys.argv[1:] if argv is None else argv
  try:
    code = _run(argv)
    sys.stdout.flush()
    return code
  except BrokenPipeError:
    return _without_stdout("the program that reads standard output has ended")
  except OSError as error:
    return _without_stdout(f"standard output cannot be written to: {error.strerror}")


def _run(argv) -> int:
  if not argv or argv[0] in ("-h", "--help", "help"):
    listed = "\n".join(f"  {name:<10} {purpose}" for name, purpose in COMMANDS.items())
    print(f"usage: albert-jax COMMAND [--help] …\n       albert-jax --version\n\ncommands:\n{listed}")
    return 0 if argv else 2
  if argv[0] in ("--version", "version"):
    print(f"albert-jax {albert_jax.__version__}")
    return 0
  command = argv[0]
  if command not in COMMANDS:
    hint = common.did_you_mean(command, COMMANDS) or f"; there are {', '.join(COMMANDS)}"
    print(f"albert-jax: no command {masked(command)!r}{hint}", file=sys.stderr)
    return 2
  common.keep_compiled()
  common.quiet_libtpu()
  if command in ("train", "evaluate", "predict", "serve"):
    common.keep_memory()
    # Tracing makes many long-lived objects; collecting garbage among them is slow and finds little.
    gc.set_threshold(100_000)
  try:
    with common.show_messages(), _sigterm_is_an_interrupt():
      return _imported(f"albert_jax.commands.{command}").main(argv[1:]) or 0
  except _Terminated:
    return _failed(command, "stopped by SIGTERM", 143)
  except KeyboardInterrupt:
    return _failed(command, "interrupted", 130)
  except BrokenPipeError:
    raise
  except UserError as error:
    return _failed(command, masked(str(error)), 2)
  except Exception as error:
    expected = isinstance(error, OSError | FloatingPointError)
    hint = "" if expected or _wants_traceback() else f" ({TRACEBACK}=1 shows where)"
    return _failed(command, f"{one_line(error)}{hint}", 1)


class _Terminated(KeyboardInterrupt):
  """The process was asked to end."""


@contextlib.contextmanager
def _sigterm_is_an_interrupt():
  """Lets SIGTERM end a command as Ctrl-C does: its temporary files are removed, and it says so in one line."""

  def stop(*_):
    raise _Terminated

  if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
    yield
    return
  signal.signal(signal.SIGTERM, stop)
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


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
