"""What the audit counts, and when it complains."""

import dataclasses
import json

import made_up
import numpy as np
import pytest

from albert_jax.commands import audit as audit_command
from albert_jax.data import datasets
from albert_jax.data.pretraining import audit
from albert_jax.data.pretraining.examples import DataConfig
from albert_jax.errors import UserError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  docs = made_up.documents(120, sentences=(5, 40))
  return made_up.dataset(tmp_path_factory.mktemp("data"), docs, segment_tokens=128, validation_fraction=0.1)


def test_a_sound_dataset_passes(dataset, tmp_path, capsys):
  config = tmp_path / "configs" / "c.py"
  config.parent.mkdir()
  config.write_text(
    "from ml_collections import ConfigDict\nimport dataclasses\n"
    "from albert_jax.data.pretraining.examples import DataConfig\n"
    "def get_config():\n  return ConfigDict({'seed': 0, 'data': dataclasses.asdict(DataConfig('', seq_length=128))})\n"
  )
  args = [str(dataset), f"--config={config}", "--examples=3000", f"--json={tmp_path / 'new/a.json'}", "--show=3"]
  assert audit_command.main(args) == 0
  numbers = json.loads((tmp_path / "new/a.json").read_text())
  assert numbers["problems"] == [] and numbers["cross_document_pairs"] == 0
  assert numbers["mask_rate"] == pytest.approx(0.15, abs=0.002)
  assert numbers["swap_rate"] == pytest.approx(0.5, abs=0.04)
  assert sum(numbers["length_histogram"]) == numbers["examples"] == 3072
  assert sum(numbers["mask_run_shares"].values()) == pytest.approx(1)
  assert (tmp_path / "new/a.png").read_bytes().startswith(b"\x89PNG")
  out = capsys.readouterr().out
  assert out.count("[CLS]") == 3
  assert out.startswith("Examples: {_:word} is masked") and "label 1: the two segments are swapped" in out
  command = f"albert-jax train --config={config} --config.data.dataset={dataset} --workdir=RUN"
  assert out.endswith(f"next: {command}\n")
  # too few slots, the trap of the original's defaults
  assert audit_command.main([*args, "--config.data.max_predictions=5"]) == 1
  assert "mask_rate" in capsys.readouterr().err


def test_two_datasets_are_one_too_many(dataset):
  flags = ["--config=pretrain:tiny", "--examples=10", "--config.data.dataset=other"]
  with pytest.raises(UserError, match=r"--config\.data\.dataset=other has no effect beside"):
    audit_command.main([str(dataset), *flags])


def test_without_a_config_it_takes_the_papers(dataset, capsys):
  assert audit_command.main([str(dataset), "--examples=300", "--show=0"]) == 1
  assert "padding_share" in capsys.readouterr().err  # these documents are too short for length 512
  assert (dataset / "audit.png").exists()


def test_documents_in_both_splits_and_repeated_text_are_found(tmp_path, monkeypatch):
  docs = made_up.documents(30, sentences=(5, 9))
  folder = made_up.dataset(tmp_path, [*docs, *[[*lines, "Another end."] for lines in docs]], segment_tokens=64)
  cfg = DataConfig(str(folder), seq_length=64)
  clean = audit.count_duplicates(cfg)
  assert clean["documents_in_both_splits"] == 0 and 0 < clean["duplicate_segments"] < 0.5
  opened = datasets.open_split
  monkeypatch.setattr(datasets, "open_split", lambda dataset, split: opened(dataset, "train"))
  assert audit.count_duplicates(cfg)["documents_in_both_splits"] > 10


def test_runs_are_counted_by_words():
  is_start = np.array([[1, 1, 1, 0, 1, 1, 1, 1, 1, 1]], bool)
  is_special = np.array([[1, 0, 0, 0, 0, 0, 1, 0, 0, 1]], bool)
  is_masked = np.array([[0, 0, 1, 1, 1, 1, 0, 1, 0, 0]], bool)  # three words, [SEP], one word
  assert audit.mask_runs(is_masked, is_start, is_special) == {1: 1, 3: 1}
  assert audit.mask_runs(np.zeros_like(is_masked), is_start, is_special) == {}


@pytest.mark.realdata
def test_masked_runs_are_those_of_the_original(real_data, tmp_path):
  """The same 200 articles as the original was given, split into sentences in the same way."""
  import re

  articles = (real_data / "pretrain/wiki_en/wiki_en_00.txt").read_text("utf-8").split("\n\n")[:200]
  ends = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(\[])")
  docs = [
    [s for line in article.strip().split("\n")[1:] for s in ends.split(line) if s.strip()] for article in articles
  ]
  spm = real_data / "vocab/albert_en_30k/spiece.model"
  folder = made_up.dataset(tmp_path, docs, spm=spm, validation_fraction=0.0)
  cfg = dataclasses.replace(DataConfig(str(folder)), validation_split="train")
  numbers, _ = audit.measure(cfg, 20_000)
  assert numbers["examples"] >= 20_000
  original = json.loads((real_data / "google_pretraining_data/stats.json").read_text())
  for words, share in original["runs_of_masked_words"].items():
    assert numbers["mask_run_shares"][words] == pytest.approx(share, abs=0.02)
  assert numbers["mask_rate"] == pytest.approx(0.15, abs=0.002)
  assert numbers["ngram_shares"] == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.01)
  assert numbers["swap_rate"] == pytest.approx(0.5, abs=0.01)
  assert numbers["short_rate"] == pytest.approx(0.1, abs=0.01)
  assert numbers["cross_document_pairs"] == 0
  for name, share in (("mask_share", 0.8), ("random_share", 0.1), ("kept_share", 0.1)):
    assert numbers[name] == pytest.approx(share, abs=0.01)
  for name, kind in (("mask_share", "mask"), ("kept_share", "same"), ("random_share", "random")):
    assert numbers[name] == pytest.approx(original["kinds"][kind], abs=0.01)
