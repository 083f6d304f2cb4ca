"""A small prepared dataset, and how to run a command as a user does."""

import os
import pathlib
import random
import subprocess
import sys

import pytest

from albert_jax.__main__ import main

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
  """Returns a folder made by `vocab` and `prepare` from a text of made-up words, sentence by sentence."""
  folder = tmp_path_factory.mktemp("dataset")
  rng = random.Random(0)
  words = ["".join(rng.choices("abcdefghijklmnoprstu", k=rng.randint(2, 8))) for _ in range(2000)]
  documents = [
    "\n".join(" ".join(rng.choices(words, k=rng.randint(5, 15))) + "." for _ in range(rng.randint(5, 40)))
    for _ in range(100)
  ]
  (folder / "text.txt").write_text("\n\n".join(documents))
  source = f"--input={folder / 'text.txt'}"
  assert main(["vocab", source, f"--out={folder / 'vocab'}", "--vocab_size=1000"]) == 0
  spm = f"--spm={folder / 'vocab' / 'spiece.model'}"
  assert main(["prepare", source, spm, f"--out={folder / 'data'}", "--segment_tokens=64", "--workers=1"]) == 0
  return folder / "data"


def flags(dataset, workdir, **overrides):
  """Returns the arguments of a small run of `albert-jax train`; overrides as optimizer__warmup_steps=3."""
  values = {
    "data__dataset": dataset, "data__seq_length": 32, "model__vocab_size": 1000, "model__num_hidden_layers": 2,
    "model__hidden_size": 32, "model__intermediate_size": 64, "model__embedding_size": 16, "batch_size": 8,
    "model__hidden_dropout_prob": 0.1, "model__max_position_embeddings": 128,
    "steps": 12, "log_every": 1, "eval_every": 6, "eval_batches": 2, "checkpoint_every": 5,
    "optimizer__warmup_steps": 3, **overrides,
  }  # fmt: skip
  return [
    f"--config={ROOT / 'configs' / 'pretrain.py'}:tiny",
    f"--workdir={workdir}",
    *(f"--config.{name.replace('__', '.')}={value}" for name, value in values.items()),
  ]


# As in pyproject.toml.
IGNORED = ("label() is deprecated:DeprecationWarning", "Error reading persistent compilation cache entry:UserWarning")


def start(command, *args, devices=1, program=("-m", "albert_jax"), **kwargs):
  """Returns a command in a process of its own, warnings being errors; stderr is kept."""
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
  warnings = [argument for pattern in IGNORED for argument in ("-W", f"ignore:{pattern}")]
  return subprocess.Popen(
    [sys.executable, "-W", "error", *warnings, *program, command, *args],
    env=environment, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **kwargs,
  )  # fmt: skip


def end(processes, seconds=900):
  """Waits for the end of processes.

  Returns:
    [(exit code, stdout, stderr)]. None is left running, whatever happens.
  """
  try:
    outputs = [process.communicate(timeout=seconds) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, outputs, strict=True)]
  finally:
    for process in processes:
      process.kill()


def run(command, *args, devices=1):
  """Runs a command to its end.

  Returns:
    (exit code, stdout, stderr).
  """
  return end([start(command, *args, devices=devices)])[0]
