"""How commands read `--config=FILE:VARIANT --config.x=y` beside their own flags."""

import argparse
import contextlib
import hashlib
import importlib.util
import os
import pathlib
import platform
import sys

from absl import flags
from ml_collections import config_flags

from albert_jax import files
from albert_jax.errors import UserError


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
      os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


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
  return args, values.config.lock()


def load_config(name: str):
  """The ConfigDict of FILE or FILE:VARIANT: what the file's `get_config(variant)` returns."""
  path, _, variant = name.partition(":")
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f"no config file at {str(path)!r}; give one such as --config=configs/pretrain.py:tiny")
  # A config builds on its neighbours: `from configs import common`.
  sys.path.insert(0, str(path.resolve().parent.parent))
  spec = importlib.util.spec_from_file_location("config_file", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*[variant] if variant else [])
