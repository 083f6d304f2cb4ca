"""Bytes are flipped, cut, repeated and inserted in every kind of file that the project reads.

A reader may read them or raise one line: no other exception, no hang, no large memory, no new file. MUTATIONS of each
kind make more than two thousand in all.
"""

import collections
import contextlib
import gzip
import json
import lzma
import pathlib
import random
import re
import resource
import shutil
import signal

import made_up
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard
from small_models import SMALL, random_params

import albert_jax
from albert_jax import convert, strict_json
from albert_jax.convert import google_tf1, hf, styletts2, tf_checkpoint
from albert_jax.data import datasets
from albert_jax.data.corpus import readers, work_units
from albert_jax.data.finetuning import choices, squad, tables, tagged
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError

MUTATIONS = 100
SECONDS = 20  # for one read, on a busy machine
TEXT = "A first sentence of words. A second one, with more of them!\n" * 40 + "\nAnother document. It ends here.\n"
ROWS = [{"text": f"sentence number {i}", "label": "ab"[i % 2]} for i in range(40)]
SQUAD = {"data": [{"paragraphs": [{"context": "Ada wrote the first program.", "qas": [
  {"id": "1", "question": "Who wrote?", "answers": [{"text": "Ada", "answer_start": 0}]}]}]}]}  # fmt: skip
RACE = {"article": "A long text.", "questions": ["What is _ ?"], "options": [["a", "b", "c", "d"]], "answers": ["B"]}


def corpus(path):
  reading = work_units.Reading()
  return [
    document
    for unit in work_units.plan(str(path), reading)
    for document in readers.documents(unit, reading, collections.Counter())
  ]


def encode(path):
  return Tokenizer(path).encode_batch(["a few words of text", "[MASK]"])


def write_parquet(path):
  pa.parquet.write_table(pa.Table.from_pylist(ROWS * 20), path)


def write_npz(path):
  path.write_bytes(b"")
  np.savez(path, a=np.arange(50), b=np.ones((3, 4)))


# Kind of file: (its name, function that writes it at a path, function that reads the path).
KINDS = {
  "text": ("a.txt", lambda path: path.write_text(TEXT), corpus),
  "gzip": ("a.txt.gz", lambda path: path.write_bytes(gzip.compress(TEXT.encode())), corpus),
  "xz": ("a.txt.xz", lambda path: path.write_bytes(lzma.compress(TEXT.encode())), corpus),
  "zstd": ("a.txt.zst", lambda path: path.write_bytes(zstandard.compress(TEXT.encode())), corpus),
  "json lines": ("a.jsonl", lambda path: path.write_text("\n".join(map(json.dumps, ROWS))), corpus),
  "parquet corpus": ("a.parquet", write_parquet, corpus),
  "parquet table": ("a.parquet", write_parquet, lambda path: tables.read_file(path, ["text", "label"])),
  "csv": (
    "a.csv", lambda path: path.write_text("text,label\n" + "".join(f'"{r["text"]}",{r["label"]}\n' for r in ROWS)),
    lambda path: tables.read_file(path, ["text", "label"]),
  ),
  "json table": (
    "a.json", lambda path: path.write_text(json.dumps(ROWS)), lambda path: tables.read_file(path, ["text", "label"]),
  ),
  "conll": (
    "a.conll", lambda path: path.write_text("Ada B-PER\nwrote O\n\nin O\nLondon B-LOC\n" * 10),
    lambda path: tagged.read([path]),
  ),
  "squad": ("a.json", lambda path: path.write_text(json.dumps(SQUAD)), squad.read_file),
  "race": (
    "a.jsonl", lambda path: path.write_text("\n".join([json.dumps(RACE)] * 5)),
    lambda path: choices.read(str(path), "train"),
  ),
  "safetensors": ("model.safetensors", None, hf.read_safetensors),
  "config.json": ("config.json", None, lambda path: convert.load(path.parent)),
  "tokenizer_config.json": ("tokenizer_config.json", None, lambda path: convert.load_tokenizer(path.parent)),
  "tokenizer.json": ("tokenizer.json", None, encode),
  "spiece.model": ("spiece.model", None, encode),
  "strict json": ("a.json", lambda path: path.write_text(json.dumps(SQUAD)), strict_json.read_object),
}  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> bytes:
  """Returns a damaged copy: a flipped bit, a changed byte, a cut, a repeated or an inserted piece, or zeros."""
  data = bytearray(data)
  for _ in range(rng.choice([1, 1, 1, 3, 10])):
    at = rng.randrange(len(data) + 1)
    size = rng.choice([1, 4, 64])
    match rng.randrange(7):
      case 0 if at < len(data):
        data[at] ^= 1 << rng.randrange(8)
      case 1 if at < len(data):
        data[at] = rng.randrange(256)
      case 2:
        del data[at:]
      case 3:
        data[at:at] = data[at : at + size]
      case 4:
        data[at:at] = bytes(rng.randrange(256) for _ in range(size))
      case 5:
        data[at : at + size] = bytes(min(size, len(data) - at))
      case _:
        del data[at : at + size]
  return bytes(data)


class Hang(BaseException):
  pass


@contextlib.contextmanager
def limited(seconds):
  def stop(*_):
    raise Hang(f"not done after {seconds} s")

  signal.signal(signal.SIGALRM, stop)
  signal.alarm(seconds)
  try:
    yield
  finally:
    signal.alarm(0)


def check_mutations(path, read, seed, monkeypatch):
  """Reads damaged copies of the file at `path`. Every outcome but a result and one line is listed with its mutation."""
  whole, rng, wrong = path.read_bytes(), random.Random(seed), []
  siblings = sorted(path.parent.rglob("*"))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for number in range(MUTATIONS):
    path.write_bytes(mutate(whole, rng))
    try:
      with limited(SECONDS):
        read(path)
    except UserError as error:
      if "\n" in str(error).strip() and "does not fit" not in str(error):
        wrong.append((number, f"several lines: {error}"))
    except OSError as error:
      if "\n" in str(error).strip():
        wrong.append((number, f"several lines: {error}"))
    except (Exception, Hang) as error:
      wrong.append((number, f"{type(error).__name__}: {str(error)[:200]}"))
  grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
  assert not wrong, wrong[:5]
  assert grown < 1 << 20, f"{grown / 1024:.0f} MiB more memory"
  assert sorted(path.parent.rglob("*")) == siblings


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  return made_up.checkpoint(tmp_path_factory.mktemp("checkpoint"))


def test_the_page_of_promises_names_tests_that_exist():
  root, file = pathlib.Path(__file__).parents[1], ""
  names = re.findall(r"`(tests/[\w/]+\.py|…)?(?:::(\w+))?`", (root / "docs/damage.md").read_text())
  assert len(names) > 50
  for path, test in names:
    file = path.replace("…", "tests/end_to_end/test_train.py") or file
    assert not test or re.search(rf"def {test}\b", (root / file).read_text()), f"{file}::{test}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_read_or_is_one_line(kind, tmp_path, checkpoint, monkeypatch):
  name, write, read = KINDS[kind]
  if write is None:
    shutil.copytree(checkpoint, tmp_path / "model")
    path = tmp_path / "model" / name
  else:
    path = tmp_path / name
    write(path)
  read(path)  # The whole file is read.
  check_mutations(path, read, kind, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
def test_a_damaged_tensorflow_checkpoint_is_one_line(suffix, tmp_path, monkeypatch):
  google_tf1.save(tmp_path / "model", SMALL, random_params(SMALL))
  [path] = [p for p in (tmp_path / "model").iterdir() if p.name.endswith(suffix)]
  prefix = path.with_name(path.name.removesuffix(suffix))
  check_mutations(path, lambda _: tf_checkpoint.read(prefix), suffix, monkeypatch)


@pytest.mark.slow
def test_a_damaged_pl_bert_is_one_line(tmp_path, monkeypatch):
  styletts2.save(tmp_path / "model", SMALL, random_params(SMALL, parts=()))
  [path] = (tmp_path / "model").glob("*.t7")
  check_mutations(path, lambda path: albert_jax.load(path.parent), "t7", monkeypatch)


@pytest.mark.slow
def test_a_damaged_dataset_is_one_line(tmp_path, monkeypatch):
  """Every file of a prepared dataset: its description, its index, its vocabulary and its shards."""
  folder = made_up.dataset(tmp_path, made_up.documents(30))
  paths = [path for path in sorted(pathlib.Path(folder).rglob("*")) if path.is_file() and path.stat().st_size]

  def read(_):
    for opened in (datasets.open_split, datasets.lengths, datasets._describe_folder):
      opened.cache_clear()
    source = datasets.open_split(str(folder), "train")
    datasets.lengths(str(folder), "train")
    datasets.tokenizer(str(folder)).encode("a word")
    datasets.fetch(source, [0, 1, 2])

  read(None)
  for path in paths:
    whole = path.read_bytes()
    check_mutations(path, read, path.name, monkeypatch)
    path.write_bytes(whole)
