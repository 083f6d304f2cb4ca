"""A page that runs an exported model in the browser: no server, no network, any static file server."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import tarfile
import tempfile
from typing import Any

from albert_jax import convert, files, paths, pipelines
from albert_jax import onnx_runtime as runtime
from albert_jax.convert.tokenizer_json import tokenizer_json
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError, message_lines
from albert_jax.tasks.squad.answers import Search
from albert_jax.types import Params

# The page's libraries: {npm package: {its file: the name in the page's folder}}.
PACKAGES = {
  "@huggingface/tokenizers@0.2.0": {
    "dist/tokenizers.min.mjs": "tokenizers.min.mjs", "LICENSE": "LICENSE.tokenizers",
  },
  "onnxruntime-web@1.30.0": {
    "dist/ort.wasm.bundle.min.mjs": "ort.wasm.bundle.min.mjs",
    "dist/ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
  },
}  # fmt: skip
TASKS = ("fill-mask", "classify", "answer", "tag", "embed")  # The page has a tab for each.
SECONDS = 300  # the time limit of npm for a package


def fetch() -> pathlib.Path:
  """Fetches the files of PACKAGES with npm, once; later calls need no network.

  Returns:
    the folder that holds them.

  Raises:
    UserError: npm is not installed, or cannot fetch a package.
  """
  folder = files.cache() / "page" / files.named_after(json.dumps(PACKAGES))
  if folder.is_dir():
    return folder
  with files.writing_folder(folder) as made:
    for package, names in PACKAGES.items():
      with tempfile.TemporaryDirectory() as scratch, tarfile.open(_packed(package, scratch)) as archive:
        for name, target in names.items():
          source = archive.extractfile(f"package/{name}")
          if source is None:
            raise OSError(f"{package} has no file {name}; its layout has changed")
          with source, (made / target).open("wb") as file:
            shutil.copyfileobj(source, file)
  return folder


def _packed(package, folder):
  """Downloads a package with npm, which verifies it; returns the path of its archive."""
  command = ["npm", "pack", "--silent", f"--pack-destination={folder}", package]
  advice = "it needs npm (of Node.js) and the network once; later pages use a cached copy"
  try:
    result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, cwd=folder)
  except FileNotFoundError:
    raise UserError(f"--page needs files of the package {package}, and npm is not installed; {advice}") from None
  except subprocess.TimeoutExpired:
    raise UserError(f"npm did not fetch {package} in {SECONDS} s; {advice}") from None
  archives = list(pathlib.Path(folder).glob("*.tgz"))
  if result.returncode or len(archives) != 1:
    reason = (message_lines(result.stderr) or ["no reason"])[0][:200]
    raise UserError(f"npm could not fetch {package} ({reason}); {advice}")
  return archives[0]


def write(exported: str | os.PathLike, out: str | os.PathLike, *, name: str, overwrite: bool = False) -> dict[str, int]:
  """Writes the folder of the page.

  Args:
    exported: a folder of `albert-jax export` with an ONNX file; the int8 file takes precedence.
    out: the new folder; it is written atomically.
    name: the model's name on the page.
    overwrite: replace what is at `out`.

  Returns:
    {name of a file: bytes}.

  Raises:
    UserError: `out` is taken, the model has no task that the page shows, or its files are missing.
  """
  exported, out = pathlib.Path(exported), pathlib.Path(files.user_path(out, "--page"))
  about = describe(exported, name)
  assets = pathlib.Path(__file__).parents[1]
  with files.writing_folder(out, overwrite=overwrite) as folder:
    for library in fetch().iterdir():
      shutil.copyfile(library, folder / library.name)
    for name_of_file in ("tokenizer.json", "tokenizer_config.json"):
      shutil.copyfile(exported / name_of_file, folder / name_of_file)
    shutil.copyfile(runtime.path_in(exported, ""), folder / "model.onnx")
    shutil.copyfile(assets / "exports" / "page.mjs", folder / "page.mjs")
    html = (assets / "serve" / "page.html").read_text("utf-8")
    (folder / "index.html").write_text(html.replace('<html lang="en">', '<html lang="en" data-local>'), "utf-8")
    (folder / "model.json").write_text(json.dumps(about, ensure_ascii=False), "utf-8")
  return {file.name: file.stat().st_size for file in sorted(out.iterdir())}


def tasks_of(params: Params, about: dict, tokenizer: Any) -> list[str]:
  """Returns the tasks of a model that the page shows.

  Args:
    params: its parameters.
    about: the facts about its task, see `convert.about`.
    tokenizer: its Tokenizer; a symbol table or None has no page.

  Raises:
    UserError: there are none, or the vocabulary has no form as a tokenizer.json.
  """
  is_text = isinstance(tokenizer, Tokenizer)
  if not is_text or tokenizer.path.endswith(".txt") or (
    not tokenizer.path.endswith(".json") and tokenizer_json(tokenizer) is None
  ):  # fmt: skip
    what = tokenizer.path if is_text else "the model's vocabulary"
    raise UserError(f"--page needs a vocabulary that can be a tokenizer.json, and {what} cannot; leave --page out")
  trained_for = about.get("name")
  able = [trained_for] if trained_for in pipelines.TASKS else pipelines.able_tasks(params, trained_for)
  tasks = [task for task in able if task in TASKS]
  if not tasks:
    raise UserError(f"--page has no tab for {' or '.join(able) or 'this model'}; it has {', '.join(TASKS)}")
  return tasks


def describe(exported: pathlib.Path, name: str) -> dict:
  """Returns what page.mjs needs to know about a model; the first fields are those of GET /v1/models.

  Raises:
    UserError: see `tasks_of`.
  """
  cfg, params = convert.load(exported)
  about, tokenizer = convert.about(exported), convert.load_tokenizer(exported)
  tasks = tasks_of(params, about, tokenizer)
  search = {field.name: about.get(field.name, field.default) for field in dataclasses.fields(Search)}
  ordinary = set(tokenizer.ordinary_ids.tolist())
  positions = cfg.max_position_embeddings
  most = min(search["seq_length"] if "answer" in tasks else about.get("seq_length") or positions, positions)
  search["max_query_length"] = min(search["max_query_length"], most // 2)  # As `tasks.squad.answers.answer`.
  return {
    "id": name, "tasks": tasks, "labels": list(about.get("labels", ())) or _numbered(params),
    "kind": about.get("kind", "classification"), "pairs": bool(about.get("pair")),
    "parameters": sum(int(leaf.size) for leaf in paths.flatten(params).values()),
    "max_tokens": most,
    "vocabulary": cfg.vocab_size, "hidden_size": cfg.hidden_size,
    "special": [i for i in range(cfg.vocab_size) if i not in ordinary],
    "cls": tokenizer.cls_id, "sep": tokenizer.sep_id, "mask": tokenizer.mask_id,
    "answer": search | {"beam": "squad_v2" in params},
  }  # fmt: skip


def _numbered(params):
  return [f"LABEL_{i}" for i in range(len(params["classifier"]["bias"]))] if "classifier" in params else []
