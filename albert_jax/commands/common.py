"""How commands read `--config=FILE:VARIANT --config.x=y` beside their own flags, and what they settle for JAX."""

import argparse
import contextlib
import ctypes
import difflib
import hashlib
import importlib.util
import logging
import os
import pathlib
import platform
import sys
import traceback

from absl import flags
from ml_collections import ConfigDict, config_flags

from albert_jax import configs, files
from albert_jax.errors import UserError, message_lines
from albert_jax.training import duration

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # M_TRIM_THRESHOLD and so on of malloc.h


def parser(command: str, description: str, example: str) -> argparse.ArgumentParser:
  """The parser of one command. A wrong flag prints one line and exits with 2, as argparse does."""
  return argparse.ArgumentParser(
    prog=f"albert-jax {command}",
    description=description,
    epilog=f"example:\n  {example}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )


def keep_compiled():
  """Lets JAX keep compiled programs between runs, so that only the first one waits for the compiler.

  They lie under ~/.cache (or XDG_CACHE_HOME), in a folder for this kind of processor: what was compiled for one may not
  run on another that shares the home directory. JAX_COMPILATION_CACHE_DIR, if set, is what counts; '' is none.
  Must be called before JAX is imported.
  """
  processor = platform.processor() or platform.machine()
  with contextlib.suppress(OSError):
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    processor += next((line for line in lines if line.startswith(("flags", "Features"))), "")
  folder = files.cache() / f"compiled-{hashlib.sha256(processor.encode()).hexdigest()[:12]}"
  with contextlib.suppress(OSError):  # A home that cannot be written to is no reason to stop.
    folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
      os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
      os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def keep_memory():
  """On machines without an accelerator, lets the process keep memory that it has freed, for the next step to use.

  Every step's temporaries, half a gigabyte for base, would else be given back to the system and be asked for anew, page
  by page: a twentieth of a step's processor time (docs/performance.md). The heap shrinks only where more than 2 GiB at
  its end are free.
  Must be called before JAX is imported, as threads that are there have heaps of their own, which stay as they are.
  Does nothing where there are no such switches (they are glibc's).
  """
  platforms = os.environ.get("JAX_PLATFORMS", "")
  has_accelerator = any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
  if platforms != "cpu" and (platforms or has_accelerator):
    return
  with contextlib.suppress(OSError, AttributeError):
    mallopt = ctypes.CDLL("libc.so.6").mallopt
    for switch, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)):
      mallopt(switch, value)


class _Messages(logging.Handler):
  """Prints the library's messages plainly to stderr, above a progress bar if there is one."""

  def emit(self, record):
    from tqdm import tqdm

    tqdm.write(self.format(record), file=sys.stderr)


def show_messages():
  """Lets a command print what the library logs: the logger "albert_jax", from level INFO."""
  logger = logging.getLogger("albert_jax")
  logger.setLevel(logging.INFO)
  if not any(isinstance(handler, _Messages) for handler in logger.handlers):
    logger.addHandler(_Messages())


def parse_with_config(parser: argparse.ArgumentParser, argv: list[str]):
  """Returns: (the command's own arguments, the config as a locked ConfigDict). Raises: UserError for a bad config."""
  parser.add_argument(
    "--config", required=True, metavar="FILE:VARIANT", help="a config file and its variant, as configs/pretrain.py:base"
  )
  parser.add_argument(
    "--config.FIELD", metavar="VALUE", dest="override", help="override one value, as --config.batch_size=64"
  )
  own = [arg for arg in argv if not arg.startswith("--config.")]
  overrides = [arg for arg in argv if arg.startswith("--config.")]
  for arg in overrides:
    if "=" not in arg:
      raise UserError(f"{arg} has no value; write {arg}=VALUE")
  args = parser.parse_args(own)
  values = flags.FlagValues()
  argv = ["albert-jax", *overrides]
  try:
    config_flags.DEFINE_config_dict("config", load_config(args.config), flag_values=values, sys_argv=argv)
    values(argv)
  except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
    raise UserError(f"{' '.join(overrides) or args.config}: {str(error).strip() or type(error).__name__}") from error
  names = {arg.removeprefix("--config.").split("=")[0] for arg in overrides}
  values.config.update(duration.chosen({name: values.config[name] for name in duration.LIMITS if name in names}))
  return args, values.config.lock()


def load_config(name: str) -> ConfigDict:
  """Loads the config that `--config=` names: what its file's `get_config(variant)` returns.

  Args:
    name: FILE or FILE:VARIANT. FILE is a path, or one of the configs that are installed with the package, as
      "configs/pretrain.py" or "pretrain".
  Returns:
    the ConfigDict, not locked.
  Raises:
    UserError: there is no such file, or it raises an error; the message has its file, line and cause.
  """
  file, _, variant = name.partition(":")
  path = _config_path(file)
  try:
    spec = importlib.util.spec_from_file_location("config_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*[variant] if variant else [])
  except UserError:
    raise
  except Exception as error:  # A config is the user's code, which can raise anything.
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = lines[-1] if lines else getattr(error, "lineno", None)
    where = f"{path}, line {line}" if line else str(path)
    raise UserError(f"{where}: {type(error).__name__}: {message_lines(error)[0]}") from error


def _config_path(file: str) -> pathlib.Path:
  """The path of a config file: as given, else among the installed configs."""
  path = pathlib.Path(file).expanduser()
  if path.is_file():
    return path.resolve()
  installed = pathlib.Path(configs.__path__[0])
  names = sorted(p.name[:-3] for p in installed.iterdir() if p.name.endswith(".py") and p.name[0] != "_")
  names.remove("common")
  short = file.removeprefix("configs/").removesuffix(".py")
  if short in names:
    return installed / f"{short}.py"
  near = difflib.get_close_matches(short, names, 1)
  hint = f"; did you mean {near[0]}?" if near else ""
  raise UserError(
    f"--config={file}: there is no such file, nor an installed config of that name ({', '.join(names)}){hint}; give "
    "one such as --config=pretrain:tiny"
  )
