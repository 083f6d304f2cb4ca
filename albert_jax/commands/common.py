"""What commands share: flags, `--config=FILE:VARIANT --config.x=y`, log messages, and settings of JAX."""

import argparse
import contextlib
import copy
import ctypes
import difflib
import glob
import hashlib
import importlib
import importlib.util
import logging
import math
import os
import pathlib
import platform
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from albert_jax import configs, files
from albert_jax.commands import config_fields
from albert_jax.errors import UserError, did_you_mean, masked, message_lines
from albert_jax.training import duration

# The configs whose fields docs/config_fields.md lists.
DOCUMENTED: tuple[str, ...] = (
  "pretrain:base", "classify:base", "glue:sst-2", "squad:base", "race:base", "ner:base", "retrieve:base",
  "summarize:base", "plbert:base",
)  # fmt: skip

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # M_TRIM_THRESHOLD and so on of malloc.h


class Parser(argparse.ArgumentParser):
  """The parser of one command: one line for a mistake, near matches for a wrong flag, paths as `files` reads them.

  An argument whose metavar is DIR, FILE or PATH is a path: `~` is replaced, and an empty one is refused.
  """

  def __init__(self, *args: Any, **kwargs: Any):
    super().__init__(*args, **kwargs)
    self._partners: dict[str, tuple[str, ...]] = {}

  def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
    if _captured is not None:
      _captured.append(self)
      raise _Captured
    for action in self._actions:
      if action.metavar in ("DIR", "FILE", "PATH") and action.type is None and action.nargs is None:
        action.type = _path
        if action.default == "":  # Otherwise argparse applies the type to the default.
          action.default = _NOTHING
    args = sys.argv[1:] if args is None else args
    for arg in args[: args.index("--") if "--" in args else len(args)]:  # A wrong flag explains a missing one.
      flag, _, value = arg.partition("=")
      if flag.startswith("--") and flag not in self._option_string_actions:
        hint = did_you_mean(flag, self._option_string_actions)
        self.error(f"there is no flag {flag}{self._override_for(flag[2:], value) or hint}")
      if re.fullmatch(r"(config\.)?[a-z][\w.]*=.+", arg) and (  # An override as other tools take it.
        hint := self._override_for(flag.removeprefix("config."), value)
      ):
        self.error(f"{arg}: a field of the config is set with a flag{hint}")
    known = super().parse_args(args, namespace)
    for name, value in vars(known).items():
      if value is _NOTHING:
        setattr(known, name, "")
    passed = {arg.split("=")[0] for arg in args[: args.index("--") if "--" in args else len(args)]}
    for flag, partners in self._partners.items():
      if flag in passed and not passed & set(partners):
        self.error(f"{flag} has no effect without {' or '.join(partners)}")
    return known

  def needs(self, flag: str, *partners: str) -> None:
    """Makes a flag an error if none of its partners is given, because it would have no effect."""
    self._partners[flag] = partners

  def _override_for(self, name: str, value: str) -> str:
    """Returns '; did you mean --config.FIELD=VALUE?' if the parser takes overrides and `name` is near a field."""
    if "--config.FIELD" not in self._option_string_actions:
      return ""
    near = near_fields(name, config_fields.flat(load_config("pretrain:tiny")), 0.85)
    return f"; did you mean --config.{near[0]}={value or 'VALUE'}?" if near else ""

  def error(self, message: str) -> NoReturn:
    prefix = "the following arguments are required: "
    if message.startswith(prefix):
      names = {"/".join(action.option_strings): action for action in self._actions}
      missing = [_usage(names[name]) if name in names else name for name in message.removeprefix(prefix).split(", ")]
      message = f"needs {', '.join(missing)}"
    self.exit(2, f"{self.prog}: {masked(message)}; see {self.prog} --help\n")


def _usage(option: argparse.Action) -> str:
  """Returns an option as it is typed, with its meaning."""
  help = f" ({option.help.split(';')[0]})" if option.help else ""
  return f"{option.option_strings[0]}={option.metavar or 'VALUE'}{help}"


def near_fields(name: str, fields: Iterable[str], likeness: float = 0.7) -> list[str]:
  """Returns up to two fields of a config that a name may mean.

  Args:
    name: what was typed.
    fields: all fields, with dots.
    likeness: from 0 to 1, how near a name must be; 1 is equal.
  """
  fields = list(fields)
  last = [field for field in fields if field.split(".")[-1] == name.split(".")[-1]]
  near = last or difflib.get_close_matches(name, fields, 2, likeness)
  short = {field.split(".")[-1]: field for field in reversed(fields)}
  near = near or [short[option] for option in difflib.get_close_matches(name.split(".")[-1], short, 2, likeness)]
  return near[:2]


_NOTHING = object()


class _Captured(Exception):
  """Stops a command after it has made its parser."""


_captured: list[Parser] | None = None


def parser_of(command: str) -> Parser:
  """Returns the parser of a command without running the command."""
  global _captured
  _captured = []
  try:
    importlib.import_module(f"albert_jax.commands.{command}").main(["--help"])
  except _Captured:
    return _captured[0]
  finally:
    _captured = None
  raise AssertionError(f"{command} parses no arguments")


def _path(text: str) -> str:
  try:
    return files.user_path(text, "this path")
  except UserError as error:
    raise argparse.ArgumentTypeError(str(error)) from None


class _Help(argparse.HelpFormatter):
  """Help as wide as the terminal: paragraphs are filled, and a long command is continued with a backslash."""

  def _fill_text(self, text, width, indent):
    if text.startswith("example:\n"):
      lines = [" "]
      for word in re.findall(r"""(?:'[^']*'|"[^"]*"|\S)+""", text.partition("\n")[2]):  # As the shell splits words.
        if len(lines[-1]) + len(word) + 3 > width:
          lines.append("   ")
        lines[-1] += f" {word}"
      return "example:\n" + " \\\n".join(lines)
    return "\n".join(textwrap.fill(line, width, initial_indent=indent) for line in text.splitlines())


def parser(command: str, description: str, example: str) -> Parser:
  """Returns the parser of one command. A wrong flag prints one line and exits with 2."""
  return Parser(
    prog=f"albert-jax {command}",
    description=description,
    epilog=f"example:\n  {example}",
    formatter_class=_Help,
    allow_abbrev=False,
  )


def page_argument(description: str | None) -> str:
  """Returns the one argument of a generator of a page: the file to write."""
  page = Parser(description=description, allow_abbrev=False)
  page.add_argument("out", metavar="FILE", help="page to write")
  return page.parse_args().out


def keep_compiled() -> None:
  """Enables JAX's compilation cache, so that only the first run compiles.

  The cache is in ~/.cache (or XDG_CACHE_HOME), with a folder for each kind of processor: programs for one kind may not
  run on another with the same home directory. JAX_COMPILATION_CACHE_DIR takes precedence; '' disables the cache.
  Must be called before JAX is imported.
  """
  processor = platform.processor() or platform.machine()
  with contextlib.suppress(OSError):
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    processor += next((line for line in lines if line.startswith(("flags", "Features"))), "")
  folder = files.cache() / f"compiled-{hashlib.sha256(processor.encode()).hexdigest()[:12]}"
  with contextlib.suppress(OSError):  # A read-only home directory only disables the cache.
    folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
      os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
      os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def quiet_libtpu() -> None:
  """Keeps JAX from initialising libtpu on a machine without a TPU, where it prints errors before it fails.

  libtpu is installed for `albert-jax plan`, which compiles for TPUs. An explicit JAX_PLATFORMS takes precedence. Must
  be called before JAX is imported.
  """
  if "JAX_PLATFORMS" in os.environ or not importlib.util.find_spec("libtpu"):
    return
  has_tpu = any(name.startswith(("TPU_WORKER", "TPU_NAME", "COLAB_TPU", "PJRT_")) for name in os.environ)
  has_tpu |= any(glob.glob(pattern) for pattern in ("/dev/accel*", "/dev/vfio/[0-9]*"))
  if not has_tpu and not importlib.util.find_spec("jax_plugins"):
    os.environ["JAX_PLATFORMS"] = "cpu"


def keep_memory() -> None:
  """Keeps freed memory in the process on machines without an accelerator, so that the next step reuses it.

  Otherwise the temporaries of every step, half a gigabyte for base, are returned to the system and allocated again page
  by page, which takes a twentieth of a step's processor time (docs/performance.md). The heap shrinks only if more than
  2 GiB at its end are free. Must be called before JAX is imported, because it does not affect the heaps of existing
  threads. Does nothing without glibc.
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
  """Prints the library's messages to stderr, results to stdout, above a progress bar if there is one."""

  def emit(self, record) -> None:
    from tqdm import tqdm

    tqdm.write(self.format(record), file=sys.stdout if record.name == "albert_jax.results" else sys.stderr)


@contextlib.contextmanager
def show_messages() -> Iterator[None]:
  """Prints what the library logs (the logger "albert_jax", from level INFO) while a command runs, and not after it."""
  logger, handler = logging.getLogger("albert_jax"), _Messages()
  level, propagates = logger.level, logger.propagate
  logger.setLevel(logging.INFO)
  logger.propagate = False  # TFDS and absl give the root logger a handler, which would print each message once more.
  logger.addHandler(handler)
  try:
    yield
  finally:
    logger.removeHandler(handler)
    logger.setLevel(level)
    logger.propagate = propagates


def parse_with_config(
  parser: Parser, argv: list[str], default: Callable[[argparse.Namespace], ConfigDict] | None = None
) -> tuple[argparse.Namespace, ConfigDict]:
  """Reads a command's own arguments, and its config.

  Args:
    parser: of the command's own arguments.
    argv: all arguments.
    default: makes the config if there is no --config; None makes --config required.

  Returns:
    The arguments, and the config with its overrides, locked.

  Raises:
    UserError: there is no such config, or an override has a wrong name or value.
    SystemExit: --show_config was given, and the config is printed.
  """
  parser.add_argument(
    "--config",
    required=default is None,
    metavar="FILE:VARIANT",
    help="a config file and its variant, as configs/pretrain.py:base",
  )
  parser.add_argument(
    "--config.FIELD", metavar="VALUE", dest="override", help="override one value, as --config.batch_size=64"
  )
  parser.add_argument("--show_config", action="store_true", help="print every field, its value and meaning, and stop")
  arguments = [arg for arg in argv if not arg.startswith("--config.")]
  overrides = [arg for arg in argv if arg.startswith("--config.")]
  for arg in overrides:
    if "=" not in arg:
      following = argv[argv.index(arg) + 1 :][:1]
      value = following[0] if following and not following[0].startswith("-") else "VALUE"
      raise UserError(f"{arg} has no value; write {arg}={masked(value)}")
  if "--show_config" in arguments and _captured is None:
    name = next((arg.partition("=")[2] for arg in arguments if arg.startswith("--config=")), "")
    if not name:
      raise UserError("--show_config needs a config; give one, as --config=pretrain:tiny")
    config = with_overrides(load_config(name), overrides)
    print(config_fields.table(config, _config_path(name.partition(":")[0]).read_text("utf-8")))
    raise SystemExit(0)
  args = parser.parse_args(arguments)
  config = default(args) if default and not args.config else load_config(args.config)
  return args, with_overrides(config, overrides).lock()


def with_overrides(config: ConfigDict, overrides: list[str]) -> ConfigDict:
  """Returns a config with values replaced, and `~` in its paths.

  Args:
    config: what a config file returned.
    overrides: arguments such as "--config.batch_size=64".

  Raises:
    UserError: the field of an override does not exist, or its value has the wrong type; names the override.
  """
  fields = config_fields.flat(config)
  for arg in overrides:
    _check_override(config, fields, arg)
  try:
    config = _overridden(config, overrides)
  except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
    raise UserError(f"{' '.join(overrides)}: {message_lines(error)[0]}") from error
  for name in ("init_from", "data.dataset", "data.spm", "data.tfds_dir"):
    if isinstance(value := config_fields.flat(config).get(name), str) and "~" in value:
      items = files.split_list(value, f"--config.{name}") if name == "data.dataset" else [files.user_path(value)]
      config.update_from_flattened_dict({name: ",".join(items)})
  names = {arg.removeprefix("--config.").split("=")[0] for arg in overrides}
  if config.get("init_structure") and config.get("init_from"):
    refuse_structure(config, names, config.init_from, f"init_from={config.init_from}")
  config.update(duration.chosen({name: config[name] for name in duration.LIMITS if name in names}))
  return config


def refuse_structure(config: ConfigDict, names: Iterable[str], checkpoint: str, source: str) -> None:
  """Refuses overrides of a model's shape that differ from the checkpoint, which decides the shape.

  Args:
    config: with the overrides.
    names: the fields of the overrides.
    checkpoint: a path, see convert.load.
    source: the flag that names the checkpoint, for the message.

  Raises:
    UserError: one of the fields belongs to the shape, and has another value in the checkpoint.
  """
  overridden = [name for name in config_fields.structure() if f"model.{name}" in names]
  if not overridden:
    return
  from albert_jax import convert  # Imports JAX, which most commands do later.

  cfg = convert.config_of(checkpoint)
  for name in overridden:
    if config.model[name] != getattr(cfg, name):
      raise UserError(
        f"--config.model.{name}={config.model[name]} has no effect: the model's shape is that of {source}, with "
        f"{name}={getattr(cfg, name)}; leave it out, or see albert-jax convert for another shape of the same weights"
      )


def _overridden(config, overrides):
  values, argv = flags.FlagValues(), ["albert-jax", *overrides]
  config_flags.DEFINE_config_dict("config", copy.deepcopy(config), flag_values=values, sys_argv=argv)
  values(argv)
  return values.config


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _check_override(config, fields, arg):
  """

  Raises:
    UserError: an override names no field, or has a value of another type.
  """
  name, _, value = arg.removeprefix("--config.").partition("=")
  arg = masked(arg)
  if name not in fields:
    inner = [field for field in fields if field.startswith(f"{name}.")]
    if inner:
      raise UserError(f"{arg}: {name} is a section; set one of its fields, as --config.{inner[0]}=VALUE")
    near = near_fields(name, fields)
    hint = f"did you mean {' or '.join(near)}?" if near else "see --show_config for all fields"
    raise UserError(f"{arg}: the config has no field {name}; {hint}")
  try:
    replaced = config_fields.flat(_overridden(config, [f"--config.{name}={value}"]))[name]
  except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
    kind = _KINDS.get(type(fields[name]), f"a {type(fields[name]).__name__}")
    raise UserError(f"{arg}: expected {kind}, such as --config.{name}={masked(str(fields[name]))}") from error
  if isinstance(replaced, float) and math.isnan(replaced):
    raise UserError(f"{arg}: expected a number, such as --config.{name}={fields[name]}")


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
    if spec is None or spec.loader is None:
      raise UserError(f"--config={file} must be a Python file, as configs/pretrain.py:tiny")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(*[variant] if variant else [])
  except UserError:
    raise
  except (Exception, SystemExit) as error:  # A config is the user's code and may raise any error.
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = lines[-1] if lines else getattr(error, "lineno", None)
    where = f"{path}, line {line}" if line else str(path)
    raise UserError(f"{where}: {type(error).__name__}: {message_lines(error)[0]}") from error
  if not isinstance(config, ConfigDict):
    raise UserError(f"{path}: get_config returned {config!r:.60}; expected an ml_collections.ConfigDict")
  return config


def _config_path(file: str) -> pathlib.Path:
  """Returns the path of a config file: as given, else among the installed configs."""
  path = pathlib.Path(files.user_path(file, "--config"))
  if path.is_file():
    return path.resolve()
  installed = pathlib.Path(configs.__path__[0])
  names = sorted(p.name[:-3] for p in installed.iterdir() if p.name.endswith(".py") and p.name[0] != "_")
  names.remove("common")
  short = file.removeprefix("configs/").removesuffix(".py")
  if short in names:
    return installed / f"{short}.py"
  hint = did_you_mean(short, names)
  raise UserError(
    f"--config={file}: there is no such file, nor an installed config of that name ({', '.join(names)}){hint}; give "
    "one such as --config=pretrain:tiny"
  )
