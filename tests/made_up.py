"""A made-up language for the data tests: enough text for a vocabulary, in a moment, from nothing."""

import contextlib
import functools
import io
import json
import random

import jax
import pyarrow
import pyarrow.parquet

from albert_jax import convert, model
from albert_jax.data.corpus import prepare, segments, vocab, work_units

SYLLABLES = [a + b for a in "bdfgklmnprst" for b in "aeiou"]


def documents(count, seed=0, sentences=(1, 40)):
  """`count` documents, each a list of sentences; words are frequent by Zipf's law."""
  chosen = random.Random(seed)
  words = ["".join(random.Random(i).choices(SYLLABLES, k=1 + i % 4)) for i in range(600)]
  weights = [1 / (i + 1) for i in range(len(words))]
  return [
    [
      " ".join(chosen.choices(words, weights, k=chosen.randint(3, 20))).capitalize() + chosen.choice(".!?")
      for _ in range(chosen.randint(*sentences))
    ]
    for _ in range(count)
  ]


def write(path, docs):
  path.write_text("\n\n".join("\n".join(lines) for lines in docs) + "\n", "utf-8")
  return path


@functools.cache
def trained(size):
  """The bytes of a vocabulary that is trained on made-up text; many test files use the same."""
  sentences = [line.lower() for document in documents(150, seed=1) for line in document]
  return vocab.train_model(sentences, vocab_size=size)


def vocabulary(folder, size=400):
  """Writes `folder/spiece.model`; returns its path."""
  path = folder / "spiece.model"
  path.write_bytes(trained(size))
  return path


def dataset(folder, docs, *, spm=None, name="dataset", **settings):
  """Prepares documents as `folder/name`; returns its path."""
  corpus = write(folder / f"{name}.txt", docs)
  with contextlib.redirect_stderr(io.StringIO()):
    prepare.prepare(
      str(corpus),
      spm or vocabulary(folder),
      folder / name,
      segments.Settings(**{"sentences": "line"} | settings),
      work_units.Reading(layout="blank"),
    )
  return folder / name


def checkpoint(folder, **fields):
  """A model of two narrow layers with random weights and a made-up vocabulary, as an export; returns its path."""
  cfg = model.AlbertConfig(
    **{"vocab_size": 400, "embedding_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
       "intermediate_size": 64, "max_position_embeddings": 128, "initializer_range": 0.1} | fields
  )  # fmt: skip
  convert.save(folder / "checkpoint", cfg, model.init(cfg, jax.random.key(0)), vocabulary=vocabulary(folder))
  return folder / "checkpoint"


def yes_or_no(folder):
  """Writes train.csv and dev.csv of texts whose first word tells their label; returns the folder."""
  rows = [f"{'kiki' if i % 2 else 'mola'} badu gine,{'yes' if i % 2 else 'no'}" for i in range(32)]
  for name in ("train.csv", "dev.csv"):
    (folder / name).write_text("\n".join(["text,label", *rows]) + "\n")
  return folder


def hub(folder, split, rows, shards=1, **features):
  """Writes a split as the Hub has it, as shards of Parquet whose metadata name classes; returns the folder."""
  folder.mkdir(parents=True, exist_ok=True)
  about = {"huggingface": json.dumps({"info": {"features": features}})}
  for i in range(shards):
    table = pyarrow.Table.from_pylist(rows[len(rows) * i // shards : len(rows) * (i + 1) // shards])
    path = folder / f"{split}-{i:05}-of-{shards:05}.parquet"
    pyarrow.parquet.write_table(table.replace_schema_metadata(about), path)
  return folder


def classes(*names, kind=""):
  """A column of classes in such metadata; `kind` of list for a column of lists, "list" for how older files have it."""
  label = {"names": names, "_type": "ClassLabel"}
  if kind == "list":
    return [label]
  return {"feature": label, "length": -1, "_type": kind} if kind else label
