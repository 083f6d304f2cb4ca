"""The code keeps its language: names that say what they hold, one docstring layout, annotations, and no printing."""

import ast
import functools
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
FILES = [file for folder in ("albert_jax", "configs", "benchmarks", "tests") for file in (ROOT / folder).rglob("*.py")]
PACKAGE = [file for file in FILES if file.is_relative_to(ROOT / "albert_jax")]
# Names that do not say what a variable holds or a function does.
VAGUE = {
  "found", "said", "own", "given", "wanted", "now", "places", "home", "look", "together", "parting", "it", "one", "of",
  "there", "here", "asked",
}  # fmt: skip
SECTIONS = "Args|Returns|Raises|Yields|Attributes"
# Files whose output is not for logging: commands, the server's access log, the table of a benchmark, and messages just
# before the process exits.
PRINTS = ("commands/", "__main__.py", "serve/process.py", "bench/rows.py", "training/watch.py")


@functools.cache
def tree(file):
  return ast.parse(file.read_text())


def nodes(file, *types):
  return [node for node in ast.walk(tree(file)) if isinstance(node, types)]


def place(file, node):
  return f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def parameters(function):
  arguments = function.args
  every = [*arguments.posonlyargs, *arguments.args, arguments.vararg, *arguments.kwonlyargs, arguments.kwarg]
  return [argument for argument in every if argument is not None]


def bound_names(file):
  """Yields (name, node) of each variable, parameter and function of a file."""
  for node in nodes(file, ast.FunctionDef, ast.AsyncFunctionDef, ast.arg, ast.Name):
    if isinstance(node, ast.arg):
      yield node.arg, node
    elif not isinstance(node, ast.Name):
      yield node.name, node
    elif isinstance(node.ctx, ast.Store):
      yield node.id, node


def is_public(name):
  return not name.startswith("_") or name in ("__init__", "__call__")


def public_functions(body):
  """Yields the public functions of a module and the public methods of its public classes."""
  for node in body.body:
    if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
      yield from public_functions(node)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and is_public(node.name):
      yield node


def test_names_say_what_they_hold():
  vague = [f"{place(file, node)} {name}" for file in FILES for name, node in bound_names(file) if name in VAGUE]
  assert not vague, "name what the variable holds"


def test_docstrings_have_one_layout():
  wrong = []
  for file in FILES:
    for node in nodes(file, ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef):
      text = ast.get_docstring(node) or ""
      wrong += [place(file, node) for _ in re.findall(rf"(?:^|\s)(?:{SECTIONS}): *\S", text)]
  assert not wrong, "a section's name stands alone on its line, and each argument on a line of its own below"


def test_documented_arguments_are_parameters():
  wrong = []
  for file in FILES:
    for function in nodes(file, ast.FunctionDef, ast.AsyncFunctionDef):
      _, _, text = (ast.get_docstring(function) or "").partition("Args:\n")
      section = re.split(r"^\S", text, maxsplit=1, flags=re.MULTILINE)[0]
      known = {parameter.arg for parameter in parameters(function)}
      for line in re.findall(r"^  (\*{0,2}\w+(?:, \*{0,2}\w+)*):", section, re.MULTILINE):
        wrong += [f"{place(file, function)} {name}" for name in line.replace("*", "").split(", ") if name not in known]
  assert not wrong


def test_public_functions_are_annotated():
  missing = []
  for file in PACKAGE:
    if file.name == "__init__.py":
      continue
    for function in public_functions(tree(file)):
      bare = [p.arg for p in parameters(function) if p.annotation is None and p.arg not in ("self", "cls")]
      if bare or (function.returns is None and function.name != "__init__"):
        missing.append(f"{place(file, function)} {function.name} {' '.join(bare)}")
  assert not missing


def test_the_library_logs_and_does_not_print():
  prints = []
  for file in PACKAGE:
    if not file.relative_to(ROOT / "albert_jax").as_posix().startswith(PRINTS):
      calls = [call for call in nodes(file, ast.Call) if isinstance(call.func, ast.Name) and call.func.id == "print"]
      prints += [place(file, call) for call in calls]
  assert not prints, "use logging.getLogger(__name__)"
