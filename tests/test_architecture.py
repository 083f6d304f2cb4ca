"""The house keeps its shape: imports point one way, and making batches needs no JAX."""

import ast
import pathlib
import re
import subprocess
import sys

PACKAGE = pathlib.Path(__file__).parents[1] / "albert_jax"
# Each room, and which others it may import.
MAY_USE = {
  "commands": {
    "configs", "bench",
    "loop", "run", "suites", "planning", "predictions", "pipelines", "evaluation", "curves", "pictures", "exports",
    "serve", "tasks", "convert", "training", "model", "data", "files", "errors",
  },
  "bench": {"tasks", "convert", "training", "model", "nvidia", "data", "files", "errors"},
  "suites": {
    "configs", "evaluation", "pipelines", "tasks", "convert", "training", "model", "data", "files", "paths", "errors",
  },
  "loop": {
    "run", "evaluation", "curves", "exports", "tasks", "convert", "training", "model", "data", "files", "paths",
    "errors",
  },
  "planning": {"run", "tasks", "convert", "training", "model", "data", "files", "paths", "errors"},
  "run": {"tasks", "convert", "training", "model", "data", "files", "paths", "errors"},
  "evaluation": {"run", "tasks", "convert", "training", "model", "data", "files", "paths", "errors"},
  "predictions": {"evaluation", "pipelines", "data", "errors"},
  "pipelines": {"onnx_runtime", "tasks", "convert", "model", "data", "files", "paths", "errors"},
  "exports": {"pipelines", "onnx_runtime", "tasks", "convert", "model", "data", "paths", "files", "errors"},
  "serve": {"pipelines", "exports", "tasks", "convert", "data", "files", "errors"},
  "onnx_runtime": {"model", "errors"},
  "curves": {"training", "files", "errors"},
  "pictures": {"curves", "convert", "model", "files", "errors", "strict_json"},
  "tasks": {"convert", "model", "data", "files", "paths", "errors"},
  "training": {"nvidia", "paths", "copies", "files", "errors"},
  "convert": {"model", "data", "paths", "copies", "files", "errors"},
  "model": {"nvidia", "paths", "errors"},
  "data": {"copies", "files", "errors"},
  "paths": {"errors"},
  "copies": {"files", "errors"},
  "files": {"errors"},
  "strict_json": {"errors"},
  "errors": set(),
  "signals": set(),
  "types": set(),
  "versions": set(),
  "nvidia": set(),
  "configs": set(),
}  # fmt: skip
WINGS = ("corpus", "pretraining", "finetuning")


def room(module):
  return module.split(".")[1]


def imports(file):
  """Yields the modules of this package that a file imports anywhere."""
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "albert_jax":
      for alias in node.names:
        yield f"{node.module}.{alias.name}"
    elif isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names if alias.name.startswith("albert_jax."))


def test_imports_point_one_way():
  wrong = []
  for file in PACKAGE.rglob("*.py"):
    relative = file.relative_to(PACKAGE)
    if str(relative) in ("__init__.py", "__main__.py"):
      continue
    own_room = room(f"albert_jax.{relative.with_suffix('').parts[0]}")
    for module in imports(file):
      if room(module) not in {own_room, "signals", "strict_json", "types", "versions", *MAY_USE[own_room]}:
        wrong.append(f"{relative} imports {module}")
  assert not wrong


def test_the_wings_of_data_do_not_import_each_other():
  wrong = []
  for wing in WINGS:
    for file in (PACKAGE / "data" / wing).rglob("*.py"):
      wrong += [
        f"{file.relative_to(PACKAGE)} imports {module}"
        for module in imports(file)
        for other in WINGS
        if other != wing and module.startswith(f"albert_jax.data.{other}")
      ]
  # Speech is on top of the first two: it reads a corpus as the one does, and makes batches as the other does.
  for wing in WINGS:
    for file in (PACKAGE / "data" / wing).rglob("*.py"):
      wrong += [f"{file} imports {m}" for m in imports(file) if m.startswith("albert_jax.data.speech")]
  for file in (PACKAGE / "data/speech").glob("*.py"):
    wrong += [f"{file} imports {m}" for m in imports(file) if m.startswith("albert_jax.data.finetuning")]
  shared = {file.stem for file in (PACKAGE / "data").glob("*.py")}
  for name in shared:
    for module in imports(PACKAGE / "data" / f"{name}.py"):
      if module.startswith("albert_jax.data.") and module.split(".")[2] in (*WINGS, "speech"):
        wrong.append(f"data/{name}.py imports {module}")
  assert not wrong


def test_optimizer_and_state_do_not_know_the_loop():
  inside = {
    "schedule": {"optimizer"}, "optimizer": {"schedule"}, "state": {"sharding", "optimizer"}, "sharding": set(),
    "checkpoint": set(),
  }  # fmt: skip
  for name, allowed in inside.items():
    used = {module.split(".")[2] for module in imports(PACKAGE / "training" / f"{name}.py") if "training" in module}
    assert used <= allowed, name


def test_making_batches_needs_no_jax():
  code = "import sys, albert_jax.data.pretraining.batching; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_start_waits_for_no_import_that_can_come_later():
  """Each of these takes a tenth of a second or more; the loop imports them once the device is at work."""
  code = """
import sys, albert_jax.loop
late = {"grain", "orbax", "tensorboardX", "tensorflow_datasets", "torch", "transformers", "matplotlib", "pandas"}
assert not late & sys.modules.keys(), late & sys.modules.keys()
"""
  subprocess.run([sys.executable, "-c", code], check=True)


def test_the_map_names_what_there_is():
  """docs/architecture.md: every file named in its first block exists, and every room and module is named there."""
  root = PACKAGE.parent
  block = (root / "docs/architecture.md").read_text().split("```")[1]
  folders = ("albert_jax", "configs", "launch", "benchmarks", "tests")
  files = {path.name for folder in folders for path in (root / folder).rglob("*.*")}
  assert not set(re.findall(r"\w+\.(?:py|sh|yaml|html)\b", block)) - files
  named = set(re.findall(r"\w+", block))
  rooms = ("", "training", "model", "exports", "convert", "data", "data/corpus", "data/pretraining", "data/finetuning")
  modules = {
    path.stem for room in rooms for path in (PACKAGE / room).iterdir() if path.suffix == ".py" or path.is_dir()
  }
  assert not {name for name in modules - named if not name.startswith("_")}
