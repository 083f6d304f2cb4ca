"""Every command and snippet of README and docs/ is right: parsed by the command's own parser, or run at small size."""

import contextlib
import dataclasses
import io
import os
import pathlib
import re
import shlex
import textwrap

import jax
import made_up
import numpy as np
import pytest

import albert_jax
from albert_jax import __main__ as main
from albert_jax import convert, model
from albert_jax.commands import COMMANDS, common
from albert_jax.data.corpus import python_docs
from albert_jax.tasks.base import about

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]

# Programs that are not this project's: their commands are not checked.
OTHERS = {"pip", "git", "source", "export", "curl", "kill", "zcat", "head", "mkdocs", "docker", "kubectl", "eval", "cd",
          "hf", "node", "npm"}  # fmt: skip

# Python blocks that are only compiled, by a line that no other block has, and why.
NOT_RUN = {
  "import openai": "needs the package openai and a server; tests/test_serve.py sends the same requests",
  "from huggingface_hub import InferenceClient": "needs a server; tests/test_serve.py sends the same requests",
  "import openvino": "needs the package openvino; tests/test_exports_onnx.py runs it where that is installed",
  "from sentence_transformers import SentenceTransformer": "imports PyTorch; tests/test_exports_folder.py does this",
  "from transformers import pipeline": "imports PyTorch; tests/test_exports_folder.py does this",
  "from transformers import AutoTokenizer": "imports PyTorch; tests/test_exports_onnx.py runs the same graph",
  'model = albert_jax.pipeline("classify", "exported", backend="onnx")': "tests/test_exports_folder.py runs it",
  "from albert_jax import predictions": "tests/test_predict.py answers such files",
  "model = jax.export.deserialize": "tests/test_exports_folder.py runs it",
  'cfg, params = albert_jax.load("Kokoro-82M")': "tests/test_styletts2.py loads such a folder",
  'HEAD = "question"': "tests/test_adding_a_task.py runs the page's whole example",
  'config = common.finetune(variant, "question"': "tests/test_adding_a_task.py runs the page's whole example",
}
# Configs that a page makes up, and which test runs them.
MADE_UP_CONFIGS = {"question:base": "tests/test_adding_a_task.py"}
# Stand-ins: what is replaced in a block before it is run, so that it takes a moment.
STAND_INS = {'VARIANTS["xxlarge"]': 'VARIANTS["tiny"]'}


@dataclasses.dataclass(frozen=True)
class Block:
  page: str
  language: str
  text: str


def blocks():
  """The fenced blocks of all pages."""
  result = []
  for page in PAGES:
    for language, text in re.findall(r"(?ms)^ *```(\w*)\n(.*?)^ *```", (ROOT / page).read_text()):
      result.append(Block(page, language, textwrap.dedent(text)))
  return result


BLOCKS = blocks()
SHELL = [block for block in BLOCKS if block.language == "sh"]
PYTHON = [block for block in BLOCKS if block.language == "python"]


def commands(block):
  """The commands of a shell block as lists of words, without comments, pipes and redirections."""
  for line in re.sub(r"\\\n\s*", " ", block.text).splitlines():
    words = shlex.split(line, comments=True)
    part = []
    for word in [*words, "|"]:
      if word in ("|", "&&", "&", ";", ">"):
        if part:
          yield part
        part = [">"] if word == ">" else []
      else:
        part.append(word)


def problem(words):
  """What is wrong with a command, '' if nothing is."""
  while re.match(r"\w+=", words[0]):  # Variables for the command that follows.
    words = words[1:]
    if not words:
      return ""
  if words[0] == "timeout":
    words = words[next(i for i, word in enumerate(words) if word in ("albert-jax", "python")) :]
  program, args = words[0], words[1:]
  if program == ">" or program in OTHERS:
    return ""
  if program == "albert-jax":
    return "" if args == ["--version"] else problem_of_command(args[0], args[1:])
  if program == "python" and args[:2] == ["-m", "albert_jax"]:
    return problem_of_command(args[2], args[3:])
  if program == "python" and args[0] in ("-m", "-c"):
    return ""
  if program == "python" or program.startswith("launch/"):
    file, args = (args[0], args[1:]) if program == "python" else (program, args)
    if not (ROOT / file).is_file():
      return f"there is no {file}"
    source = (ROOT / file).read_text()
    before = args[: args.index("--")] if "--" in args else args
    flags = [arg.split("=")[0] for arg in before if arg.startswith("--")]
    unknown = [flag for flag in flags if flag not in source and f'"{flag.removeprefix("--")}"' not in source]
    if unknown:
      return f"{file} has no {', '.join(unknown)}"
    return problem_of_command("train", args[args.index("--") + 1 :]) if "--" in args else ""
  return f"{program} is no program that this test knows; add it to OTHERS or correct the page"


def problem_of_command(command, args):
  """The same of `albert-jax COMMAND ARGS`: its own parser reads the flags, the named config takes the overrides."""
  if command not in COMMANDS:
    return f"there is no command {command}"
  overrides = [arg for arg in args if arg.startswith("--config.")]
  stderr = io.StringIO()
  try:
    with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
      parsed = common.parser_of(command).parse_args([arg for arg in args if arg not in overrides])
      name = getattr(parsed, "config", None) or "classify:base"
      if name in MADE_UP_CONFIGS:
        return ""
      common.with_overrides(common.load_config(name), overrides)
  except SystemExit as error:
    return stderr.getvalue().strip() if error.code else ""
  except albert_jax.UserError as error:
    return str(error)
  return ""


def test_every_shell_block_is_marked_and_right(monkeypatch):
  monkeypatch.chdir(ROOT)
  unmarked = [
    block for block in BLOCKS if not block.language and re.search(r"(?m)^(albert-jax|python|pip) ", block.text)
  ]
  assert not unmarked, "mark blocks of commands with ```sh, so that they are checked"
  wrong = {}
  for block in SHELL:
    for words in commands(block):
      if message := problem(words):
        wrong[f"{block.page}: {' '.join(words)}"] = message
  assert not wrong, "\n".join(f"{where}\n    {message}" for where, message in wrong.items())
  assert sum(words[0] == "albert-jax" for block in SHELL for words in commands(block)) > 60


def test_a_wrong_command_is_seen():
  assert "did you mean --workdir" in problem(shlex.split("albert-jax train --config=pretrain:tiny --workdri=x"))
  assert "stepz" in problem(shlex.split("albert-jax train --config=pretrain:tiny --config.stepz=3 --workdir=x"))
  assert "no command trian" in problem(["albert-jax", "trian"])
  assert "has no --nope" in problem(["launch/tpu.sh", "create", "--nope"])
  assert "there is no benchmarks/none.py" in problem(["python", "benchmarks/none.py"])


def test_files_and_links_in_tables_exist():
  """Scripts, configs and tests that the pages name in code marks are there."""
  pattern = r"`((?:launch|configs|benchmarks|tests|albert_jax)/[\w/.]+\.(?:py|sh|ipynb|yaml))"
  missing = []
  for page in PAGES:
    if page == "docs/log.md" or page.startswith("docs/contributing/"):  # Files that are gone, and made-up ones.
      continue
    for name in re.findall(pattern, (ROOT / page).read_text()):
      if not (ROOT / name).exists() and "NAME" not in name:
        missing.append(f"{page}: {name}")
  assert not missing, "\n".join(missing)


def reason(block):
  return next((why for line, why in NOT_RUN.items() if line in block.text), "")


def test_the_list_of_blocks_that_are_not_run_is_current():
  for line, why in NOT_RUN.items():
    assert sum(line in block.text for block in PYTHON) == 1, f"{line!r} is in no block, or in several: {why}"
    for file in re.findall(r"tests/\w+\.py", why):
      assert (ROOT / file).exists(), f"{line!r}: {file} is gone"
  for block in PYTHON:
    compile(block.text, block.page, "exec")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder with the runs that the pages speak of."""
  folder = tmp_path_factory.mktemp("pages")
  base = made_up.checkpoint(folder)
  (folder / "runs").mkdir()
  base.rename(folder / "runs/base")
  cfg, params = albert_jax.load(folder / "runs/base")
  params = {name: part for name, part in params.items() if name not in ("mlm", "sop")}
  params["classifier"] = {"kernel": np.zeros((cfg.hidden_size, 2), np.float32), "bias": np.zeros(2, np.float32)}
  convert.save(
    folder / "runs/mine", cfg, params, vocabulary=folder / "spiece.model",
    extra=about("classify", ("bad", "good"), kind="classification", seq_length=32),
  )  # fmt: skip
  return folder


@pytest.mark.parametrize("block", [block for block in PYTHON if not reason(block)], ids=lambda block: block.page)
def test_python_of_the_pages_runs(block, folder, monkeypatch):
  monkeypatch.chdir(folder)
  text = block.text
  for before, after in STAND_INS.items():
    text = text.replace(before, after)
  cfg = model.AlbertConfig(
    vocab_size=400, embedding_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
    max_position_embeddings=32,
  )  # fmt: skip
  names = {  # What the text around the block speaks of.
    "albert_jax": albert_jax, "Tokenizer": albert_jax.data.tokenizer.Tokenizer if "Tokenizer" in text else None,
    "ids": np.array([[2, 9, 12, 3]], np.int32), "path": "runs/base", "texts": ["a", "b"], "text": "bada kefe",
    "cfg": cfg, "params": None,
  }  # fmt: skip
  exec(compile(text, block.page, "exec"), names)  # A page of this project.


# The page that a new user follows, in its order. Longer numbers are replaced, and the model is smaller.
SHORTER = {
  "--vocab_size=4000": "--vocab_size=1000",
  "--config.steps=600": "--config.steps=4",
  "--config.steps=1200": "--config.steps=6",
}
SMALLER = ["--config.batch_size=8", "--config.data.seq_length=32", "--config.optimizer.warmup_steps=1"]
PRETRAINED = [
  *SMALLER, "--config.curriculum.seq_length=", "--config.curriculum.batch_size=", "--config.eval_batches=1",
  "--config.model.scan_unroll=1", "--config.model.hidden_size=32", "--config.model.num_attention_heads=2",
  "--config.model.embedding_size=16", "--config.model.intermediate_size=32", "--config.model.num_hidden_layers=1",
]  # fmt: skip


@pytest.mark.slow
def test_the_first_ten_minutes_run_from_top_to_bottom(tmp_path, monkeypatch, capfd):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "corpus").mkdir()
  documents = [paragraphs for _, paragraphs in python_docs.topics() if len(paragraphs) > 2]
  (tmp_path / "corpus/topics.txt").write_text("\n\n".join("\n".join(lines) for lines in documents))
  (tmp_path / "mytable").mkdir()
  for name, rows in (("train", 24), ("dev", 8)):
    lines = [f'"{documents[i][0][:80].replace(chr(34), "")}",{"short" if i % 2 else "long"}\n' for i in range(rows)]
    (tmp_path / f"mytable/{name}.csv").write_text("text,label\n" + "".join(lines))
  ran = []
  for block in SHELL:
    for words in commands(block) if block.page == "docs/start.md" else ():
      if words[0] != "albert-jax" or words[1] in ("doctor", "serve", "export"):
        continue
      args = [SHORTER.get(word, word) for word in words[1:]]
      if args[0] == "train":
        args += PRETRAINED if "--config=pretrain:small" in args else [*SMALLER, "--config.epochs=1.0"]
      code = main.main(args)
      # The topics have duplicates, which an audit reports with the exit code 1.
      assert code == 0 or (args[0], code) == ("audit", 1), (words, capfd.readouterr().err[-2000:])
      ran.append(args[0])
  assert {"vocab", "prepare", "audit", "train", "predict", "plot"} <= set(ran)
  assert ran.count("train") == 3
  assert (tmp_path / "curves.png").stat().st_size > 10_000
  assert jax.devices() and os.listdir(tmp_path / "runs")
