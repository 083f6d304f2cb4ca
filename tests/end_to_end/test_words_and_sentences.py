"""Tagging, summaries and retrieval from the command line: train, go on, evaluate, and read what is left there."""

import json
import random

import made_up
import pytest
from conftest import ROOT

from albert_jax.__main__ import main

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_runs")]

WORDS = [a + b for a in made_up.SYLLABLES[:20] for b in made_up.SYLLABLES[20:25]]
NAMES = ["badebi", "fofugu", "kolomu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Returns a vocabulary, and made-up data for each task that can be learnt by heart."""
  folder = tmp_path_factory.mktemp("words")
  made_up.vocabulary(folder)
  rng = random.Random(0)
  for split, count in {"train": 64, "dev": 20}.items():
    lines = []
    for _ in range(count):
      words = [(word, "O") for word in rng.choices(WORDS, k=rng.randint(3, 9))]
      words[1:1] = [(rng.choice(NAMES), "B-NAME"), *[("bade", "I-NAME")] * rng.randint(0, 1)]
      lines.append("".join(f"{word}\t{tag}\n" for word, tag in words))
    (folder / f"{split}.conll").write_text("\n".join(lines))
    documents, pairs = [], []
    for _ in range(count):
      sentences = [" ".join(rng.choices(WORDS, k=rng.randint(3, 6))) for _ in range(6)]
      documents.append({"document": sentences, "summary": sentences[0]})  # news is like that
      answer = rng.choices(WORDS, k=4)
      pairs.append({"query": answer[0], "answer": " ".join(answer)})
    (folder / f"documents.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    (folder / f"pairs.{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
  return folder


def flags(task, folder, **overrides):
  """Returns the arguments of a small run; overrides as optimizer__warmup_steps=3."""
  values = {
    "data__dataset": folder, "data__spm": folder, "data__seq_length": 64, "model__vocab_size": 400,
    "model__num_hidden_layers": 1, "model__hidden_size": 32, "model__intermediate_size": 32,
    "model__embedding_size": 16, "model__num_attention_heads": 2, "batch_size": 16, "epochs": 0, "steps": 60,
    "eval_every": 30, "checkpoint_every": 30, "optimizer__warmup_steps": 5, "optimizer__learning_rate": 1e-2,
    "optimizer__textbook": True, **overrides,
  }  # fmt: skip
  return [f"--config={ROOT}/configs/{task}.py:tiny",
          *(f"--config.{name.replace('__', '.')}={value}" for name, value in values.items())]  # fmt: skip


def held_out(run):
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  return {line["step"]: {k: v for k, v in line.items() if k not in ("step", "split")}
          for line in lines if line["split"] == "eval"}  # fmt: skip


def evaluated(task, folder, run, tmp_path, **overrides):
  """What `albert-jax evaluate` says of a run's export, with the answers in tmp_path/out."""
  where = [f"--checkpoint={run}/export", f"--json={tmp_path / 'numbers.json'}", f"--out={tmp_path / 'out'}"]
  assert main(["evaluate", *flags(task, folder, **overrides), *where]) == 0
  return json.loads((tmp_path / "numbers.json").read_text())


def trained(task, folder, run, **overrides):
  """Trains, and returns the held-out numbers of steps 30 and 60."""
  assert main(["train", *flags(task, folder, **overrides), f"--workdir={run}"]) == 0
  numbers = held_out(run)
  assert list(numbers) == [30, 60]
  return numbers


def test_tagging(folder, tmp_path, capsys):
  run = tmp_path / "run"
  assert main(["train", *flags("ner", folder, steps=30), f"--workdir={run}"]) == 0
  numbers = trained("ner", folder, run)
  assert "resuming from step 30" in capsys.readouterr().err
  assert numbers[60]["f1"] > 0.9
  answers = (run / "predictions/predictions.conll").read_text()
  assert len(answers.split("\n\n")) == 20
  assert all(len(line.split("\t")) == 3 for line in answers.splitlines() if line)

  best = max(numbers.values(), key=lambda line: line["f1"])
  metrics = evaluated("ner", folder, run, tmp_path)
  assert metrics == pytest.approx(best, abs=1e-6)
  if best == numbers[60]:
    assert (tmp_path / "out/predictions.conll").read_text() == answers
  # Scored as if they had been made elsewhere.
  capsys.readouterr()
  scored = ["evaluate", "--task=ner", f"--predictions={tmp_path}/out/predictions.conll", f"--gold={folder}/dev.conll"]
  assert main(scored) == 0
  again = json.loads(capsys.readouterr().out)
  assert again == pytest.approx({name: metrics[name] for name in again})
  assert again["f1"] == metrics["f1"]


def test_summaries(folder, tmp_path):
  run = tmp_path / "run"
  files = {
    "data__split": "documents.train.jsonl",
    "data__validation_split": "documents.dev.jsonl",
    "task__sentences": 1,
  }
  numbers = trained("summarize", folder, run, **files)
  best = max(numbers.values(), key=lambda line: line["rouge2"])
  assert best["rouge2"] > 0.8
  metrics = evaluated("summarize", folder, run, tmp_path, **files)
  assert metrics == pytest.approx(best, abs=1e-5)
  lines = [json.loads(line) for line in (tmp_path / "out/summaries.jsonl").read_text().splitlines()]
  assert len(lines) == 20
  assert sum(line["rouge2"] for line in lines) / 20 == pytest.approx(metrics["rouge2"], abs=1e-5)
  assert json.loads((run / "export/config.json").read_text())["albert_jax_task"] == {
    "name": "summarize", "labels": [], "sentences": 1, "trigram_blocking": True, "seq_length": 64,
  }  # fmt: skip


def test_retrieval(folder, tmp_path):
  run, files = tmp_path / "run", {"data__split": "pairs.train.jsonl", "data__validation_split": "pairs.dev.jsonl"}
  files |= {"optimizer__learning_rate": 1e-3}
  numbers = trained("retrieve", folder, run, **files)
  best = max(numbers.values(), key=lambda line: line["mrr"])
  assert best["mrr"] > 0.5  # guessing has 0.18
  metrics = evaluated("retrieve", folder, run, tmp_path, **files)
  assert metrics == pytest.approx(best, abs=1e-5)
  lines = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
  assert sum(1 / line["rank"] for line in lines) / 20 == pytest.approx(metrics["mrr"])
  exported = json.loads((run / "export/config.json").read_text())
  assert exported["albert_jax_task"] == {"name": "embed", "labels": [], "pooling": "mean", "seq_length": 64}
  assert exported["architectures"] == ["AlbertModel"]
