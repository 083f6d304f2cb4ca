"""The commands of docs/deploy.md, as they stand there: train on a CSV, export, quantize, serve, a browser, Node."""

import csv
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys

import chromium
import made_up
import numpy as np
import pytest

import albert_jax
from albert_jax.errors import UserError

pytest.importorskip("onnxruntime")
pytest.importorskip("starlette")

from albert_jax.exports import page

pytestmark = [
  pytest.mark.slow,
  pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]
DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "deploy.md").read_text("utf-8")
COMMANDS = [shlex.split(text) for text in re.findall(r"```sh\n(.*?)\n```", PAGE, re.DOTALL)]
SECONDS = 240  # that npm may take
GOOD = "mola badu gire"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Where the commands run: a pre-trained model of two narrow layers, and a table whose labels are one word."""
  folder = tmp_path_factory.mktemp("deploy")
  (folder / "runs").mkdir()
  made_up.checkpoint(folder).rename(folder / "runs" / "mine")
  sentences = [" ".join(sentence.split()[:6]) for document in made_up.documents(40, seed=5) for sentence in document]
  (folder / "films").mkdir()
  for name, rows in (("train", sentences[:160]), ("dev", sentences[160:240])):
    with (folder / "films" / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
      writer = csv.writer(file)
      writer.writerow(("text", "label"))
      writer.writerows((f"{GOOD if i % 2 else 'kiki'} {text}", ("bad", "good")[i % 2]) for i, text in enumerate(rows))
  return folder


def command(name, *more):
  """The command of the page that begins with a name, with more arguments."""
  [words] = [words for words in COMMANDS if words[: len(name.split())] == name.split()]
  program = {"albert-jax": [sys.executable, "-m", "albert_jax"], "python": [sys.executable]}.get(words[0], words[:1])
  return [*program, *words[1:], *more]


def run(folder, words):
  result = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, env=environment())
  assert result.returncode == 0, result.stderr[-3000:]
  return result.stdout


def environment():
  return os.environ | {"JAX_PLATFORMS": "cpu"}


def free_port():
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


@pytest.fixture(scope="module")
def exported(folder):
  """The folder after the first two commands: trained for some steps, exported, with a page where npm works."""
  steps = ("--config.epochs=0", "--config.steps=40", "--config.optimizer.learning_rate=5e-3", "--config.eval_every=40")
  run(folder, command("albert-jax train", *steps, "--config.data.seq_length=32", "--config.best="))
  words = command("albert-jax export", "--max_loss=5", "--formats=onnx")
  try:
    page.fetch()
  except UserError:  # Without npm: the rest of the page works without its fourth command.
    words = [word for word in words if not word.startswith("--page")]
  assert "model_int8.onnx" in run(folder, words)
  return folder


@pytest.fixture(scope="module")
def answer(exported):
  """{label: probability} of a text, by the int8 file in this process."""
  [result] = albert_jax.pipeline("classify", exported / "exported", backend="onnx")([GOOD])
  assert result["label"] == "good"
  return result["scores"]


def shown(window, address):
  """{label: percent} that the page at an address shows for the text."""
  window.get(address)
  assert chromium.until(lambda: chromium.texts(window, "[role=tab]")) == ["Classify"]
  box = window.find_element("id", "classify-text")
  box.clear()
  box.send_keys(GOOD)
  chromium.until(lambda: chromium.texts(window, "#words .word") == GOOD.split())
  rows = [row.rsplit("%", 1)[0] for row in chromium.texts(window, "#classify-out .row")]
  return {re.match("[a-z]+", row).group(): float(re.search(r"[\d.]+", row).group()) for row in rows}


def started(folder, words, ready):
  process = subprocess.Popen(words, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                             text=True)  # fmt: skip
  chromium.until(ready)
  return process


def answers_at(port):
  def ready():
    with socket.socket() as connection:
      return connection.connect_ex(("127.0.0.1", port)) == 0

  return ready


def test_the_page_names_five_commands():
  assert [words[0] for words in COMMANDS] == ["albert-jax", "albert-jax", "albert-jax", "python", "node"]


def test_the_browser_shows_what_the_server_and_the_page_without_one_answer(exported, answer):
  port, static = free_port(), free_port()
  processes = [started(exported, [*command("albert-jax serve")[:-1], f"--port={port}"], answers_at(port))]
  addresses = [f"http://127.0.0.1:{port}/"]
  if (exported / "page").is_dir():
    words = [str(static) if word == "8080" else word for word in command("python -m http.server")]
    processes.append(started(exported, words, answers_at(static)))
    addresses.append(f"http://127.0.0.1:{static}/")
  try:
    with chromium.windows() as start:
      window = start()
      for address in addresses:
        percents = shown(window, address)
        assert percents == pytest.approx({label: 100 * score for label, score in answer.items()}, abs=0.6), address
  finally:
    for process in processes:
      process.send_signal(signal.SIGTERM)
    codes = [process.wait(60) for process in processes]
  assert codes[0] == 0


@pytest.mark.parametrize("name", ["deploy.md", "exports.md"])
def test_node_answers_as_python_does(exported, answer, name):
  if not shutil.which("npm"):
    pytest.skip("npm is not installed")
  try:
    # Their scripts fetch files for GPUs from elsewhere.
    packages = {
      "deploy.md": ["onnxruntime-node@1.30.0", "@huggingface/tokenizers@0.2.0"],
      "exports.md": ["@huggingface/transformers@4.3.2"],
    }[name]
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", *packages]
    subprocess.run(install, cwd=exported, check=True, capture_output=True, timeout=SECONDS)
  except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
    pytest.skip(f"npm cannot install {packages}: {error}")
  [code] = re.findall(r"```js\n(.*?)```", (DOCS / name).read_text("utf-8"), re.DOTALL)
  code = code.replace("'A fine film.'", "process.argv[2]")
  (exported / "classify.mjs").write_text(code, "utf-8")
  [result] = np.ravel(json.loads(run(exported, [*command("node")[:-1], GOOD]).splitlines()[-1]))
  assert result["label"] == "good"
  assert result["score"] == pytest.approx(answer["good"], abs=0.01)
