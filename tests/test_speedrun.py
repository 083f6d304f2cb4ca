"""The speedrun's script refuses wrong arguments before it installs anything, and its row says what the run was."""

import os
import pathlib
import random
import runpy
import subprocess

import pytest

from albert_jax.commands import common

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(("arguments", "message"), [
  ([], "--corpus is missing"),
  (["--corpus=text", "--out="], "--out is empty"),
  (["--corpsu=text"], "--corpsu=text is unknown"),
])  # fmt: skip
def test_a_wrong_argument_is_one_line(arguments, message):
  result = subprocess.run([ROOT / "launch/speedrun.sh", *arguments], capture_output=True, text=True)
  assert result.returncode == 2
  assert message in result.stderr
  assert result.stderr.count("\n") == 1


def test_the_row_counts_the_positions_of_every_stage():
  config = common.load_config("pretrain:small").to_dict()
  card = {
    "config": config, "started": "2026-01-02T03:04:05+00:00", "devices": {"cpu": 1}, "code": {"revision": "0123456789"},
    "command": ["albert-jax", "train", "--config=x", "--config.data.dataset=d", "--config.seed=1", "--workdir=w"],
  }  # fmt: skip
  row = runpy.run_path(str(ROOT / "benchmarks/leaderboard_row.py"))["row"]
  cells = row(card, {"mlm_loss": 5.0, "sop_accuracy": 0.6}, 6.0, 1000, prepare=90, train=1800)
  assert cells == [
    "2026-01-02", "0123456", f"{len(os.sched_getaffinity(0))} cores", "1.5, 30.0", "1,000",
    f"{config['steps'] * 2048 / 1e6:.1f} M", "5.000", "2.00", "0.600", "0", "--config.seed=1",
  ]  # fmt: skip


@pytest.mark.slow
def test_a_small_corpus_becomes_a_row(tmp_path):
  rng = random.Random(0)
  words = ["".join(rng.choices("aeioubdkmnrst", k=rng.randint(2, 7))) for _ in range(300)]
  documents = [
    "\n".join(" ".join(rng.choices(words, k=9)).capitalize() + "." for _ in range(10)) for _ in range(300)
  ]  # fmt: skip
  (tmp_path / "text.txt").write_text("\n\n".join(documents))
  model = ("hidden_size=16", "embedding_size=8", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=16")
  small = ["--config.steps=8", "--config.optimizer.warmup_steps=1", *(f"--config.model.{field}" for field in model)]
  command = [ROOT / "launch/speedrun.sh", "--corpus=text.txt", "--out=out", "--vocab_size=200", "--", *small]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
  assert result.returncode == 0, result.stderr
  assert "| 0.0 M |" in result.stdout
  assert (tmp_path / "out/run/export/model.safetensors").exists()
