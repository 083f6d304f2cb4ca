"""From a corpus to a dataset."""

import collections
import dataclasses
import hashlib
import io
import json
import shutil
import unicodedata

import made_up
import numpy as np
import pytest

from albert_jax.commands import prepare as prepare_command
from albert_jax.data import datasets, records
from albert_jax.data.corpus import prepare, runners, segments, shards, vocab, work_units
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError


@pytest.fixture(scope="module")
def spm(tmp_path_factory):
  return made_up.vocabulary(tmp_path_factory.mktemp("vocabulary"))


def contents(folder):
  """Returns {file name: digest} of a dataset, but for the description, which holds the paths of the run."""
  return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def read(folder, split):
  """Returns the documents of a split: {document id: list of segments}, a segment being (ids, sentence starts)."""
  data = datasets.open_split(str(folder), split)
  many = records.unpack(datasets.fetch(data, list(range(len(data)))))
  documents = collections.defaultdict(list)
  for r in range(len(data)):
    ids = many.ids[many.id_base[r] :][: many.tokens[r]].tolist()
    starts = many.sentence_starts[many.sentence_base[r] :][: many.sentences[r]].tolist()
    documents[int(many.document[r])].append((ids, starts))
  return documents


def test_a_dataset_holds_its_corpus(tmp_path, spm):
  docs = made_up.documents(60)
  folder = made_up.dataset(tmp_path, docs, spm=spm, segment_tokens=48, validation_fraction=0.2)
  tokenizer = Tokenizer(spm)
  expected = {records.document_id(lines): tokenizer.encode_batch(lines) for lines in docs}
  train, validation = read(folder, "train"), read(folder, "validation")
  assert train and validation and not train.keys() & validation.keys()
  all_records = train | validation
  assert all_records.keys() == expected.keys()
  for document, sentences in expected.items():
    assert [i for ids, _ in all_records[document] for i in ids] == [i for ids in sentences for i in ids]
    if max(map(len, sentences)) <= 45:
      split = [
        ids[a:b] for ids, starts in all_records[document] for a, b in zip(starts, [*starts[1:], None], strict=True)
      ]
      assert split == sentences
  description = json.loads((folder / "prepare.json").read_text())
  assert description["splits"]["train"]["tokens"] == sum(len(ids) for s in train.values() for ids, _ in s)
  assert description["splits"]["validation"]["documents"] == len(validation)
  assert description["vocabulary"]["size"] == tokenizer.vocab_size
  assert (folder / "spiece.model").read_bytes() == spm.read_bytes()
  # the baselines, the slow way
  count = collections.Counter(i for s in train.values() for ids, _ in s for i in ids)
  held = [i for s in validation.values() for ids, _ in s for i in ids]
  total = sum(count.values()) + tokenizer.vocab_size - 4
  loss = -np.mean([np.log((count[i] + 1) / total) for i in held])
  assert description["baselines"]["unigram_loss"] == pytest.approx(loss)
  top = count.most_common(1)[0][0]
  assert description["baselines"]["top_token_accuracy"] == pytest.approx(np.mean([i == top for i in held]))


def test_tfds_reads_it(tmp_path, spm):
  import tensorflow_datasets as tfds

  folder = made_up.dataset(tmp_path, made_up.documents(20), spm=spm)
  builder = tfds.builder_from_directory(str(folder))
  assert set(builder.info.splits) == {"train", "validation"}
  record = builder.as_data_source("train")[0]["record"]
  assert records.unpack([record]).tokens[0] > 0


def make(corpus, spm, out, *, workers=1, reading=None, **kwargs):
  settings = segments.Settings(**{"sentences": "line", "segment_tokens": 64} | kwargs)
  reading = reading or work_units.Reading(layout="blank")
  return prepare.prepare(str(corpus), spm, out, settings, reading, run=runners.local(workers))


def test_any_number_of_workers_makes_the_same(tmp_path, spm, monkeypatch):
  monkeypatch.setattr(work_units.plan, "__defaults__", (20_000,))
  corpus = made_up.write(tmp_path / "a.txt", made_up.documents(100))
  make(corpus, spm, tmp_path / "one")
  make(corpus, spm, tmp_path / "three", workers=3)
  assert len(list((tmp_path / "one").glob("*train.array*"))) > 2
  assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_a_killed_run_continues(tmp_path, spm, monkeypatch):
  monkeypatch.setattr(work_units.plan, "__defaults__", (20_000,))
  corpus = made_up.write(tmp_path / "a.txt", made_up.documents(100))
  make(corpus, spm, tmp_path / "whole")
  done = []
  original = segments.tokenise_unit

  def dies_at_the_third(number, *args):
    if len(done) == 2:
      raise KeyboardInterrupt
    done.append(number)
    return original(number, *args)

  with monkeypatch.context() as m:
    m.setattr(segments, "tokenise_unit", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
      make(corpus, spm, tmp_path / "dataset")
  assert not (tmp_path / "dataset").exists()
  kept = {path: path.stat().st_mtime_ns for path in (tmp_path / ".dataset.partial" / "units").glob("*.npz")}
  assert len(kept) == 2
  seen = []
  original_copy = shards.copy_unit

  def notes_the_units(*args):
    seen.append({path: path.stat().st_mtime_ns for path in kept})
    return original_copy(*args)

  with monkeypatch.context() as m:
    m.setattr(shards, "copy_unit", notes_the_units)
    make(corpus, spm, tmp_path / "dataset")
  assert seen[0] == kept  # what was done was not done again
  assert contents(tmp_path / "dataset") == contents(tmp_path / "whole")
  assert not (tmp_path / ".dataset.partial").exists()


def test_duplicates_are_dropped_and_counted(tmp_path, spm):
  docs = made_up.documents(30)
  corpus = made_up.write(tmp_path / "a.txt", [*docs, *docs[:7]])
  description = make(corpus, spm, tmp_path / "dataset")
  assert description["input"]["duplicate_documents"] == 7
  assert sum(split["documents"] for split in description["splits"].values()) == 30


def test_mistakes_leave_nothing_behind(tmp_path, spm):
  corpus = made_up.write(tmp_path / "a.txt", made_up.documents(20))
  out = tmp_path / "out"

  def fails(match, text=None, **kwargs):
    path = made_up.write(tmp_path / "b.txt", text) if text else corpus
    with pytest.raises(UserError, match=match):
      make(path, spm, out, **kwargs)
    assert not out.exists()

  fails("--validation_fraction=1 ", validation_fraction=1)
  fails("--segment_tokens=3", segment_tokens=3)
  fails("all in one document", text=[["One.", "Two."]])
  fails(r"b\.txt has no text \(bytes: .*\); expected text with blank lines", text=[["  "]])
  fails("no document has two sentences", text=[["One."], ["Two."], ["Three."]])
  with pytest.raises(UserError, match="no vocabulary at"):
    make(corpus, tmp_path / "nothing.model", out)
  make(corpus, spm, out)
  before = contents(out)
  with pytest.raises(UserError, match=r"exists already.*--overwrite"):
    make(corpus, spm, out)
  assert contents(out) == before


def test_the_command(tmp_path, spm, capsys):
  corpus = made_up.write(tmp_path / "a.txt", made_up.documents(20))
  args = [f"--input={corpus}", f"--spm={spm}", f"--out={tmp_path / 'out'}", "--workers=1"]
  assert prepare_command.main(args) == 0
  assert '"unigram_loss"' in capsys.readouterr().out
  assert prepare_command.main([*args, "--overwrite", "--segment_tokens=32"]) == 0
  assert datasets.describe(str(tmp_path / "out"))["settings"]["segment_tokens"] == 32
  assert dataclasses.asdict(segments.Settings())["segment_tokens"] == 512


def notes_of(corpus, spm, out, capsys, *flags):
  capsys.readouterr()
  prepare_command.main([f"--input={corpus}", f"--spm={spm}", f"--out={out}", "--workers=1", *flags])
  lines = capsys.readouterr().out.splitlines()
  return [line.removeprefix("note: ") for line in lines if line.startswith("note: ")]


def test_a_held_out_document_with_most_of_the_text_is_reported(tmp_path, spm, capsys):
  """Of three books, whole ones are held out; in this order the longest."""
  for seed in range(30):
    books = [*made_up.documents(2, seed, (30, 40)), *made_up.documents(1, seed, (300, 301))]
    ids = np.array([records.document_id(lines) for lines in books], np.uint64)
    if shards.split_documents(ids, 0.05)[1][2]:
      break
  corpus = made_up.write(tmp_path / "books.txt", books)
  (note,) = notes_of(corpus, spm, tmp_path / "out", capsys)
  tokens = {split: counts["tokens"] for split, counts in datasets.describe(str(tmp_path / "out"))["splits"].items()}
  share = tokens["validation"] / sum(tokens.values())
  assert share > 0.5 and note.startswith(f"{share:.0%} of the tokens are held out instead of 5%")
  assert "1 of 3" in note and "--validation_fraction" in note
  assert notes_of(corpus, spm, tmp_path / "all", capsys, "--validation_fraction=0") == []


def test_few_held_out_segments_are_reported_and_enough_are_not(tmp_path, spm, capsys):
  corpus = made_up.write(tmp_path / "a.txt", made_up.documents(30))
  (note,) = notes_of(corpus, spm, tmp_path / "few", capsys)
  assert "will be noisy; raise --validation_fraction" in note
  flags = ["--validation_fraction=0.4", "--segment_tokens=32"]
  assert notes_of(corpus, spm, tmp_path / "many", capsys, *flags) == []


def test_replaced_characters_are_reported(spm, tmp_path, capsys):
  """Text in cp1252 that is read as UTF-8 has lost its umlauts."""
  text = "".join(f"Satz {i} ist schön.\nEr ist {i} größer.\n\n" for i in range(100))
  (tmp_path / "a.txt").write_text(text, "cp1252")
  flags = ("--validation_fraction=0", "--keep_accents")
  (note,) = notes_of(tmp_path / "a.txt", spm, tmp_path / "lost", capsys, *flags, "--encoding=utf-8")
  assert note.startswith("200 lines have characters that are not UTF-8") and "--encoding=cp1252" in note
  assert notes_of(tmp_path / "a.txt", spm, tmp_path / "kept", capsys, *flags, "--encoding=cp1252") == []


def test_a_long_document_is_tokenised_in_parts(tmp_path, spm, monkeypatch):
  docs = made_up.documents(4, sentences=(200, 300))
  corpus = made_up.write(tmp_path / "a.txt", docs)
  make(corpus, spm, tmp_path / "one")
  monkeypatch.setattr(segments, "_BATCH_CHARS", 500)
  make(corpus, spm, tmp_path / "other")
  assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_a_store_that_is_not_this_machine(tmp_path, spm):
  import fsspec

  corpus = made_up.write(tmp_path / "a.txt", made_up.documents(20))
  make(corpus, spm, "memory://bucket/made")
  make(corpus, spm, tmp_path / "local")
  store = fsspec.filesystem("memory")
  hashes = {name.rsplit("/", 1)[-1]: hashlib.sha256(store.cat(name)).hexdigest() for name in store.find("/bucket/made")}
  assert hashes == contents(tmp_path / "local")
  assert not store.exists("/bucket/.made.partial")


def test_beam_makes_the_same(tmp_path, spm, monkeypatch):
  pytest.importorskip("apache_beam")
  monkeypatch.setattr(work_units.plan, "__defaults__", (20_000,))
  corpus = made_up.write(tmp_path / "a.txt", made_up.documents(100))
  make(corpus, spm, tmp_path / "local")
  options = "--runner=FnApiRunner --direct_num_workers=2 --direct_running_mode=multi_processing"
  prepare.prepare(
    str(corpus),
    spm,
    tmp_path / "beam",
    segments.Settings(sentences="line", segment_tokens=64),
    work_units.Reading(layout="blank"),
    run=runners.beam(options),
  )
  assert contents(tmp_path / "beam") == contents(tmp_path / "local")


HINDI = ["यह पहला वाक्य है। नमस्ते विद्यार्थी कैसे हैं? हम पढ़ते हैं।", "दूसरा लेख भी हिन्दी में है। यह अच्छा है।"]


def test_the_rules_of_a_vocabulary_are_followed_from_prepare_to_the_tokenizer(tmp_path):
  (tmp_path / "a.txt").write_text("\n\n".join(f"{text} {'क' * (i + 1)}।" for i, text in enumerate(HINDI * 20)), "utf-8")
  vocab.train_vocabulary(str(tmp_path / "a.txt"), tmp_path / "v", vocab_size=46)
  out = tmp_path / "data"
  description = prepare.prepare(str(tmp_path / "a.txt"), tmp_path / "v", str(out))
  assert description["settings"]["keep_accents"] and description["settings"]["lower"]
  assert description["splits"]["train"]["unknown_rate"] == 0
  assert description["splits"]["train"]["sentences"] >= 3 * description["splits"]["train"]["documents"]
  for tokenizer in (datasets.tokenizer(str(out)), Tokenizer(out), Tokenizer(out / "spiece.model")):
    assert tokenizer.keep_accents
    assert unicodedata.normalize("NFKC", tokenizer.decode(tokenizer.encode(HINDI[0]))) == HINDI[0].replace(
      "ढ़", "ढ\u093c"
    )
  with pytest.raises(UserError, match="trained with --keep_accents"):
    prepare.prepare(str(tmp_path / "a.txt"), tmp_path / "v", f"{out}2", segments.Settings(keep_accents=False))


def test_a_vocabulary_without_rules_asks_where_marks_would_be_lost(tmp_path, spm):
  (tmp_path / "a.txt").write_text("Über für. Größe zählt.\n\nSchöne Tür. Früher war.\n", "utf-8")
  with pytest.raises(UserError, match=r"of the words would lose an accent.*--keep_accents"):
    prepare.prepare(str(tmp_path / "a.txt"), spm, str(tmp_path / "data"))
  settings = segments.Settings(keep_accents=False)
  assert not prepare.prepare(str(tmp_path / "a.txt"), spm, str(tmp_path / "data"), settings)["settings"]["keep_accents"]


def test_a_refused_corpus_leaves_nothing_beside_the_folder(tmp_path, spm):
  (tmp_path / "a.txt").write_text("One sentence.\n\nAnother sentence.\n")
  before = set(tmp_path.iterdir())
  with pytest.raises(UserError, match="no document has two sentences"):
    prepare.prepare(str(tmp_path / "a.txt"), spm, str(tmp_path / "data"))
  assert set(tmp_path.iterdir()) == before


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, spm):
  folder = tmp_path_factory.mktemp("whole")
  (folder / "a.txt").write_text("\n\n".join(f"Sentence {i} is here. Another one of {i}." for i in range(30)))
  prepare.prepare(str(folder / "a.txt"), spm, str(folder / "data"))
  return folder / "data"


def damage(dataset, folder, name, change):
  """A copy of a dataset in which a file is changed; the sizes in prepare.json are those of the changed files."""
  shutil.copytree(dataset, folder)
  path = folder / name
  path.write_bytes(change(path.read_bytes()))
  if name != "prepare.json":
    description = json.loads((folder / "prepare.json").read_text())
    description["files"][name] = path.stat().st_size
    (folder / "prepare.json").write_text(json.dumps(description))
  return str(folder)


def edit(*keys, value):
  """Returns a change of JSON: the value at `keys`."""

  def change(data):
    whole = node = json.loads(data)
    for key in keys[:-1]:
      node = node[key]
    node[keys[-1]] = value
    return json.dumps(whole).encode()

  return change


@pytest.mark.parametrize(
  ("name", "change", "message"),
  [
    ("spiece.model", lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], "is not the vocabulary"),
    ("features.json", edit("pythonClassName", value="this.Zen"), "names the class"),
    ("features.json", lambda data: b"[" * 9999, "features.json"),
    ("dataset_info.json", lambda data: data[:100], "cannot be read"),
    ("lengths-train.npy", lambda data: data[:70], "is no array of numbers"),
    ("lengths-train.npy", lambda data: pickled(), "is no array of numbers"),
    ("prepare.json", lambda data: data[:200], "is not JSON"),
    ("prepare.json", lambda data: b"", "is empty"),
    ("prepare.json", lambda data: b"[]", "expected an object"),
    ("prepare.json", edit("vocabulary", "file", value="../data/spiece.model"), "is no name of a file in the folder"),
    ("prepare.json", edit("files", value={"../a.txt": 1}), "is no name of a file in the folder"),
    ("prepare.json", edit("settings", "lower", value="no"), "expected a boolean"),
    ("prepare.json", edit("splits", "train", "segments", value=1), "instead of 1"),
    ("prepare.json", edit("splits", "train", value=None), "expected an object"),
    ("prepare.json", edit("baselines", "unigram_loss", value="x"), "expected a number"),
  ],
)
def test_a_damaged_dataset_is_one_line(dataset, tmp_path, name, change, message):
  folder = damage(dataset, tmp_path / "data", name, change)
  with pytest.raises(UserError, match=message) as error:
    datasets.tokenizer(folder)
    datasets.lengths(folder, "train")
  assert "\n" not in str(error.value)


def pickled():
  data = io.BytesIO()
  np.save(data, np.array([{}], object), allow_pickle=True)
  return data.getvalue()
