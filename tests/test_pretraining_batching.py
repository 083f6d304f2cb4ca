"""Batches for the loop: the same bits however the work is shared."""

import dataclasses
import errno
import gc
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc

import grain
import made_up
import numpy as np
import pytest

from albert_jax.commands import common
from albert_jax.data import datasets
from albert_jax.data.pretraining.batching import DataConfig, batch_maker, eval_batches, train_batches
from albert_jax.errors import UserError
from albert_jax.tasks import pretrain


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Returns a folder with a small prepared dataset, `dataset`."""
  folder = tmp_path_factory.mktemp("data")
  made_up.dataset(folder, made_up.documents(80), segment_tokens=64, validation_fraction=0.2)
  return folder


@pytest.fixture
def cfg(folder):
  return DataConfig(str(folder / "dataset"), seq_length=64)


def take(batches, count):
  result = [batch for batch, _ in zip(batches, range(count), strict=False)]
  return result


def assert_equal(first, second):
  assert len(first) == len(second)
  for a, b in zip(first, second, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def joined(parts):
  """Batches of several hosts, as the global batches they are parts of."""
  return [{key: np.concatenate([part[key] for part in step]) for key in step[0]} for step in zip(*parts, strict=True)]


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_hosts_share_a_batch(cfg, hosts):
  whole = take(train_batches(cfg, batch_size=24, seed=1), 5)
  parts = [take(train_batches(cfg, batch_size=24, seed=1, host=h, hosts=hosts), 5) for h in range(hosts)]
  assert parts[0][0]["input_ids"].shape == (24 // hosts, 64)
  assert_equal(joined(parts), whole)


def test_hosts_share_a_batch_of_another_objective(cfg):
  cfg = dataclasses.replace(cfg, objective="nsp")
  whole = take(train_batches(cfg, batch_size=24, seed=1), 3)
  parts = [take(train_batches(cfg, batch_size=24, seed=1, host=h, hosts=3), 3) for h in range(3)]
  assert_equal(joined(parts), whole)
  assert 0.2 < np.mean([batch["sop_label"] for batch in whole]) < 0.8


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_matter(cfg, workers):
  expected = take(train_batches(cfg, batch_size=8, seed=1, start_step=2, host=1, hosts=2), 7)
  cfg = dataclasses.replace(cfg, workers=workers)
  assert_equal(take(train_batches(cfg, batch_size=8, seed=1, start_step=2, host=1, hosts=2), 7), expected)


def is_running(pid):
  """Returns whether there is a process, and it is not one that has ended and that nobody has asked for."""
  try:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
  except OSError:
    return False


@pytest.mark.skipif(not pathlib.Path("/proc/self").exists(), reason="looks at processes as Linux shows them")
def test_workers_end_with_the_loop_and_not_before_it(cfg):
  cfg = dataclasses.replace(cfg, workers=2)
  program = f"""if True:
    import multiprocessing, os, signal, sys
    from albert_jax.data.pretraining.batching import DataConfig, train_batches
    if __name__ == "__main__":
      batches = train_batches({cfg!r}, batch_size=8, seed=1)
      for _ in range(3):
        next(batches)  # The second one starts the workers, which have made it.
      heard = []
      signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
      print(*(process.pid for process in multiprocessing.active_children()), flush=True)
      while not heard:
        next(batches)
      for _ in range(50):
        next(batches)
      print("went on", flush=True)
      signal.pause()"""
  process = subprocess.Popen(
    [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
  )  # fmt: skip
  try:
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    os.killpg(process.pid, signal.SIGINT)  # As Ctrl-C.
    assert process.stdout.readline() == "went on\n"
  finally:
    process.kill()
    process.communicate()
  until = time.monotonic() + 30
  while any(is_running(pid) for pid in workers):
    assert time.monotonic() < until, "workers of a loop that was killed are still there"
    time.sleep(0.05)


@pytest.mark.parametrize(("field", "value"), [("split", "nope"), ("validation_split", "train["), ("weights", "nan")])
def test_a_split_is_checked_before_a_run_begins(cfg, field, value):
  config = common.load_config("pretrain:tiny")
  config.data.update({"dataset": cfg.dataset, "seq_length": cfg.seq_length})
  config.model.vocab_size = datasets.tokenizer(cfg.dataset).vocab_size
  assert pretrain.make(config).vocabulary
  config.model.type_vocab_size = 1
  with pytest.raises(UserError, match="type_vocab_size=1 has no type for the second segment"):
    pretrain.make(config)
  config.model.type_vocab_size = 2
  config.data[field] = value
  with pytest.raises(UserError, match=r"has no split|must be 1 positive numbers"):
    pretrain.make(config)


def test_full_shared_memory_is_one_line(cfg, monkeypatch):
  def full(**_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(grain, "MultiprocessingOptions", full)
  batches = train_batches(dataclasses.replace(cfg, workers=2), batch_size=4, seed=0, start_step=0)
  next(batches)
  with pytest.raises(OSError, match=r"/dev/shm is full; .*data\.workers=0"):
    next(batches)


def test_resuming_is_a_slice(cfg):
  whole = take(train_batches(cfg, batch_size=8, seed=1), 60)
  for start in (1, 17, 59):
    assert_equal(take(train_batches(cfg, batch_size=8, seed=1, start_step=start), 60 - start), whole[start:])


def test_every_epoch_has_every_record_once_and_differs(cfg):
  records = datasets.open_split(cfg.dataset, "train")
  size = len(records)
  batches = take(train_batches(cfg, batch_size=size, seed=1), 2)
  lengths = [np.sort(batch["attention_mask"].sum(axis=1)) for batch in batches]
  assert size > 50 and (batches[0]["input_ids"] != batches[1]["input_ids"]).any(axis=1).mean() > 0.9
  assert abs(lengths[0].mean() - lengths[1].mean()) < 3
  other = take(train_batches(cfg, batch_size=size, seed=2), 1)[0]
  assert (other["input_ids"] != batches[0]["input_ids"]).any(axis=1).mean() > 0.9


@pytest.mark.parametrize("packing", [1, 4])
def test_memory_does_not_grow_over_epochs(cfg, packing):
  cfg = dataclasses.replace(cfg, packing=packing, short_seq_rate=0.0)
  maker = batch_maker(cfg, batch_size=16, seed=1)
  epoch = len(datasets.open_split(cfg.dataset, "train")) // 16
  held = []
  tracemalloc.start()
  try:
    for step in range(6 * epoch):
      maker(step)
      if (step + 1) % epoch == 0:
        gc.collect()
        held.append(tracemalloc.get_traced_memory()[0])
  finally:
    tracemalloc.stop()
  assert max(held[1:]) - held[0] < 50_000, held  # bytes; a batch alone has 30,000


def test_a_held_out_sentence_tries_the_model(cfg, folder):
  vocabulary = datasets.tokenizer(cfg.dataset)
  text = pretrain.masked_sentence(cfg.dataset, cfg.validation_split, vocabulary)
  ids = vocabulary.encode(text, specials=True)
  assert ids.count(vocabulary.mask_id) == 1 and 10 <= len(ids) <= 24 and vocabulary.unk_id not in ids
  assert text == text.strip() and "  " not in text


def test_a_sentence_that_begins_with_a_dash_is_no_example(folder, tmp_path):
  """As an argument of a command it would be a flag."""
  (tmp_path / "a.txt").write_text("".join(f"- {i} of these words are in the list here.\n" for i in range(40)))
  from albert_jax.data.corpus import prepare

  spm = str(next(folder.rglob("spiece.model")))
  prepare.prepare(
    str(tmp_path / "a.txt"), spm, str(tmp_path / "data"), prepare.segments.Settings(validation_fraction=0)
  )
  assert pretrain.masked_sentence(str(tmp_path / "data"), "train", datasets.tokenizer(str(tmp_path / "data"))) == ""


def test_a_sentence_without_spaces_is_masked_without_spaces(tmp_path):
  """Japanese: pieces, and a [MASK], stand side by side."""
  animals, towns, verbs = (
    ("猫", "犬", "先生", "学生", "子供"),
    ("学校", "公園", "東京", "駅前"),
    ("行きました", "走っています", "本を読んだ"),
  )
  sentences = [f"{a}は{b}で{c}。" for a in animals for b in towns for c in verbs]
  documents = ["\n".join(sentences[i : i + 6]) for i in range(0, len(sentences), 3)]
  (tmp_path / "a.txt").write_text("\n\n".join(documents) + "\n", "cp932")
  from albert_jax.data.corpus import prepare, vocab, work_units

  reading = work_units.Reading(encoding="shift_jis")
  vocab.train_vocabulary(str(tmp_path / "a.txt"), str(tmp_path), vocab_size=50, reading=reading)
  prepare.prepare(
    str(tmp_path / "a.txt"), str(tmp_path / "spiece.model"), str(tmp_path / "data"),
    prepare.segments.Settings(segment_tokens=64, validation_fraction=0.3), reading,
  )  # fmt: skip
  text = pretrain.masked_sentence(str(tmp_path / "data"), "validation", datasets.tokenizer(str(tmp_path / "data")))
  assert "[MASK]" in text and " " not in text


def test_evaluation_is_one_fixed_pass(cfg):
  size = len(datasets.open_split(cfg.dataset, "validation"))
  batches = list(eval_batches(cfg, batch_size=16, seed=1))
  assert len(batches) == -(-size // 16) and size % 16
  real = np.concatenate([batch["mlm_weights"].any(axis=1) for batch in batches])
  assert real.tolist() == [True] * size + [False] * (len(real) - size)
  assert not np.concatenate([batch["sop_weight"] for batch in batches])[size:].any()
  assert_equal(list(eval_batches(cfg, batch_size=16, seed=1)), batches)
  parts = [list(eval_batches(cfg, batch_size=16, seed=1, host=h, hosts=4)) for h in range(4)]
  assert_equal(joined(parts), batches)
  assert_equal(list(eval_batches(cfg, batch_size=16, seed=1, max_batches=1)), batches[:1])


def test_mistakes_are_explained(cfg, folder, tmp_path):
  def fails(match, *, batch_size=8, hosts=1, host=0, **changes):
    with pytest.raises(UserError, match=match):
      train_batches(dataclasses.replace(cfg, **changes), batch_size=batch_size, seed=0, host=host, hosts=hosts)

  message = (
    "data.dataset=python_docs: nothing is there; expected a folder made by: albert-jax prepare --input=python_docs"
  )
  fails(message, dataset="python_docs")
  fails(r"is a folder without prepare\.json", dataset=str(tmp_path))
  fails("no split 'test'; expected one of train, validation", split="test")
  fails("must be divisible by the number of hosts", batch_size=9, hosts=2)
  fails("not one of 2 hosts", hosts=2, host=2)
  other = made_up.vocabulary(tmp_path, size=300)
  fails("is not the vocabulary", spm=str(other))
  train_batches(
    dataclasses.replace(cfg, spm=str(folder / "spiece.model")), batch_size=8, seed=0
  )  # an equal one is fine


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_shard_is_explained(folder, damage, tmp_path):
  shutil.copytree(folder / "dataset", tmp_path / "copy")
  shard = next((tmp_path / "copy").glob("*train.array*"))
  if damage == "missing":
    shard.unlink()
  else:
    shard.write_bytes(shard.read_bytes()[:-1000])
  with pytest.raises(UserError, match="is missing" if damage == "missing" else "bytes instead of"):
    train_batches(DataConfig(str(tmp_path / "copy")), batch_size=8, seed=0)


def test_a_corrupted_shard_is_explained_while_reading(folder, tmp_path):
  shutil.copytree(folder / "dataset", tmp_path / "copy")
  shard = next((tmp_path / "copy").glob("*train.array*"))
  data = bytearray(shard.read_bytes())
  for i in range(2000, len(data), 97):
    data[i] ^= 0x55 if data[i] else 0
  shard.write_bytes(data)
  with pytest.raises(UserError, match=r"cannot be read .* albert-jax prepare"):
    take(train_batches(DataConfig(str(tmp_path / "copy"), seq_length=64), batch_size=64, seed=0), 10)


def test_the_package_does_not_import_jax():
  # Worker processes import it, and must never touch an accelerator.
  code = """
import sys, importlib, pkgutil, albert_jax.data
for module in pkgutil.walk_packages(albert_jax.data.__path__, "albert_jax.data."):
  importlib.import_module(module.name)
assert "jax" not in sys.modules, "jax"
"""
  subprocess.run([sys.executable, "-c", code], check=True)
