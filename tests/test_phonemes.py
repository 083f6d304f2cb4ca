"""`albert-jax phonemes`: a corpus to words with phonemes, the same for any number of workers, and what it refuses."""

import json
import re
import sys

import numpy as np
import pytest

from albert_jax import __main__
from albert_jax.commands import phonemes as command
from albert_jax.data import datasets, records
from albert_jax.data.corpus import runners, work_units
from albert_jax.data.speech import lexicon, prepare, symbols, words
from albert_jax.errors import UserError

READING = work_units.Reading()


def write_lines(path, documents=30, lines=4, seed=0):
  """JSON lines of made-up words with phonemes: a word's phonemes are its letters, with stress."""
  rng = np.random.default_rng(seed)
  vocabulary = ["".join(rng.choice(list("abdefiklmnopstuz"), rng.integers(1, 7))) for _ in range(80)]
  with path.open("w") as file:
    for document in range(documents):
      for _ in range(lines):
        chosen = [vocabulary[min(79, int(rng.exponential(15)))] for _ in range(rng.integers(5, 40))] + ["."]
        phonemes = [word if word == "." else "ˈ" + word for word in chosen]
        file.write(json.dumps({"document": document, "words": chosen, "phonemes": phonemes}) + "\n")
  return path


def make(tmp_path, name="dataset", source=None, run=None, **options):
  source = source or write_lines(tmp_path / "lines.jsonl")
  fields = {key: options.pop(key) for key in list(options) if key in prepare.Settings.__dataclass_fields__}
  settings = prepare.Settings(**{"segment_symbols": 200, "words": 40} | fields)
  return prepare.make_dataset(str(source), str(tmp_path / name), settings, READING, run=run, **options)


def read(folder, split):
  """Returns the words and phonemes of a split's records, each record a list of (word, phonemes)."""
  source, words = datasets.open_split(str(folder), split), lexicon.load(str(folder))
  batch = records.unpack(datasets.fetch(source, list(range(len(source)))))
  return [
    [(words.words[i], words.phonemes[i]) for i in batch.ids[base : base + size]]
    for base, size in zip(batch.id_base, batch.tokens, strict=True)
  ]


class TestDataset:
  def test_it_holds_the_corpus(self, tmp_path):
    description = make(tmp_path, validation_fraction=0.2)
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    expected = sorted(pair for line in lines for pair in zip(line["words"], line["phonemes"], strict=True))
    both = read(tmp_path / "dataset", "train") + read(tmp_path / "dataset", "validation")
    assert sorted(pair for record in both for pair in record) == expected
    sizes = [sum(len(phonemes) + 1 for _, phonemes in record) for record in both]
    assert max(sizes) <= 200 + 8 and np.mean(sizes) > 120
    splits = description["splits"]
    assert splits["train"]["words"] + splits["validation"]["words"] == len(expected)
    assert splits["train"]["symbols"] + splits["validation"]["symbols"] == sum(sizes)
    assert splits["train"]["documents"] + splits["validation"]["documents"] == 30

  def test_it_is_the_same_for_any_number_of_workers_and_units(self, tmp_path, monkeypatch):
    monkeypatch.setattr(work_units.plan, "__defaults__", (4000,))
    make(tmp_path, "one")
    make(tmp_path, "two", run=runners.local(2))
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert files == {path.name for path in (tmp_path / "two").iterdir()}
    for name in files - {"prepare.json"}:
      assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    assert len(list((tmp_path / "one").glob("*train*array_record*"))) > 2

  @pytest.mark.slow
  def test_beam_makes_the_same(self, tmp_path, monkeypatch, capsys):
    pytest.importorskip("apache_beam")
    monkeypatch.setattr(work_units.plan, "__defaults__", (4000,))
    source = write_lines(tmp_path / "lines.jsonl")
    for name, options in {
      "local": ["--workers=1"],
      "beam": [
        "--runner=beam",
        "--beam_options=--runner=apache_beam.runners.direct.direct_runner.BundleBasedDirectRunner",
      ],
    }.items():
      argv = ["phonemes", f"--input={source}", "--phonemised", f"--out={tmp_path / name}", "--words=40", *options]
      assert __main__.main(argv) == 0
    capsys.readouterr()
    names = {path.name for path in (tmp_path / "local").iterdir()}
    assert names == {path.name for path in (tmp_path / "beam").iterdir()}
    assert len([name for name in names if "-train.array_record" in name]) > 2
    for name in names:
      assert (tmp_path / "local" / name).read_bytes() == (tmp_path / "beam" / name).read_bytes(), name

  def test_targets_are_the_most_frequent_words(self, tmp_path):
    description = make(tmp_path, words=5)
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    all_words = [word for line in lines for word in line["words"]]
    names = lexicon.load_targets(tmp_path / "dataset")
    assert names[:2] == ["<space>", "<unknown>"]
    assert names[2:] == sorted(set(all_words), key=lambda w: (-all_words.count(w), w))[:5]
    words = lexicon.load(str(tmp_path / "dataset"))
    assert {names[t] for t in words.target} == set(names) - {"<space>"}
    assert description["vocabulary"]["words"] == 7
    assert 0 < description["words"]["coverage"] < 1
    assert 0 < description["words"]["target_entropy"] < description["words"]["target_entropy_at_most"]

  def test_targets_are_those_of_another_dataset_or_of_a_tokenizer(self, tmp_path, capsys):
    make(tmp_path, "first", words=5)
    names = lexicon.load_targets(tmp_path / "first")
    unused = [*names, "absent"]
    (tmp_path / "words.txt").write_text("".join(f"{name}\n" for name in unused))
    (tmp_path / "vocab.txt").write_text(
      "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "##x", "Ab", *names[2:5]])
    )
    cases = {"first": names, "words.txt": unused, "vocab.txt": names[:5]}
    for i, (source, targets) in enumerate(cases.items()):
      description = make(tmp_path, str(i), words_from=str(tmp_path / source))
      assert lexicon.load_targets(tmp_path / str(i)) == targets
      assert description["vocabulary"]["words"] == len(targets)
      assert description["words"]["target_entropy_at_most"] == pytest.approx(np.log(len(targets) - 2))
    (tmp_path / "words.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="is no list of word targets"):
      make(tmp_path, "x", words_from=str(tmp_path / "words.txt"))
    with pytest.raises(UserError, match=r"missing\.txt does not exist; expected a dataset of phonemes"):
      make(tmp_path, "x", words_from=str(tmp_path / "missing.txt"))
    assert not (tmp_path / "x").exists()

  def test_baselines_are_those_of_frequencies(self, tmp_path):
    described = make(tmp_path, validation_fraction=0.3, words=1000)["baselines"]
    positions = {split: [c for r in read(tmp_path / "dataset", split) for _, p in r for c in p]
                 for split in ("train", "validation")}  # fmt: skip
    top = max(set(positions["train"]), key=positions["train"].count)
    share = positions["validation"].count(top) / len(positions["validation"])
    assert described["phoneme_accuracy"] == pytest.approx(share)
    targets = {split: [w for r in read(tmp_path / "dataset", split) for w, p in r for _ in p]
               for split in ("train", "validation")}  # fmt: skip
    top = max(set(targets["train"]), key=targets["train"].count)
    share = targets["validation"].count(top) / len(targets["validation"])
    assert described["word_accuracy"] == pytest.approx(share)

  def test_what_is_strange_is_counted_with_examples(self, tmp_path):
    lines = [
      {"words": ["a", "b", "c", "12"], "phonemes": ["x", "", "(ko)y(en-us)", "z"]},
      {"words": ["a", "long"], "phonemes": ["xȸ", "y" * 200]},
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    numbers = make(tmp_path, source=tmp_path / "x.jsonl", validation_fraction=0.0)["words"]
    assert numbers["without_phonemes"]["examples"] == {"b": 1}
    assert numbers["language_switches"]["examples"] == {"c": "(ko)y(en-us)"}
    assert numbers["numbers_as_digits"]["examples"] == {"12": "z"}
    assert numbers["too_long"]["distinct"] == 1
    assert numbers["outside_the_table"]["examples"] == {"ȸ": {"occurrences": 1, "in": "a"}}
    assert [pair for record in read(tmp_path / "dataset", "train") for pair in record] == [
      ("a", "x"), ("c", "y"), ("12", "z"), ("a", "xȸ")
    ]  # fmt: skip
    numbers = make(tmp_path, "more", tmp_path / "x.jsonl", validation_fraction=0.0, add_symbols=1)
    assert numbers["vocabulary"]["size"] == 179 and numbers["words"]["outside_the_table"]["occurrences"] == 0
    assert symbols.load(tmp_path / "more").pieces[178] == "ȸ"

  def test_a_word_with_tabs_and_line_feeds_keeps_its_phonemes(self, tmp_path):
    line = {"words": ["a\tb", "c\r\nd", "e"], "phonemes": ["x\ty", "z", "w"]}
    (tmp_path / "x.jsonl").write_text(json.dumps(line) + "\n")
    make(tmp_path, source=tmp_path / "x.jsonl", validation_fraction=0.0)
    assert read(tmp_path / "dataset", "train") == [[("a b", "xy"), ("c d", "z"), ("e", "w")]]


class TestEspeak:
  @pytest.fixture(autouse=True)
  def needs_espeak(self):
    pytest.importorskip("espeakng_loader", reason="needs espeak-ng: pip install 'albert-jax[speech]'")
    pytest.importorskip("phonemizer", reason="needs espeak-ng: pip install 'albert-jax[speech]'")

  def corpus(self, tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("Hello world, it is 1999.\nMore words.\n\nAnother text.\n\nThe third one (주판).\n", "utf-8")
    return path

  def test_text_becomes_words_with_phonemes(self, tmp_path):
    make(tmp_path, source=self.corpus(tmp_path), language="en-us", validation_fraction=0.0)
    pairs = [pair for record in read(tmp_path / "dataset", "train") for pair in record]
    assert ("hello", "həlˈoʊ") in pairs and (",", ",") in pairs and ("nineteen", "nˈaɪntiːn") in pairs
    assert ("주판", "tɕuphˈɐn") in pairs

  def test_the_cache_gives_the_same_and_spares_the_phonemiser(self, tmp_path, monkeypatch):
    options = {"source": self.corpus(tmp_path), "language": "en-us", "cache": str(tmp_path / "cache")}
    make(tmp_path, "one", **options)
    monkeypatch.setattr(prepare.units, "phonemise_words", None)
    make(tmp_path, "two", **options)
    assert read(tmp_path / "one", "train") == read(tmp_path / "two", "train")

  def test_a_damaged_cache_is_one_line(self, tmp_path):
    options = {"source": self.corpus(tmp_path), "language": "en-us", "cache": str(tmp_path / "cache")}
    make(tmp_path, "one", **options)
    [file] = (tmp_path / "cache").iterdir()
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="the cache of phonemised words, is damaged; remove it"):
      make(tmp_path, "two", **options)

  def test_an_unknown_language_names_near_ones(self, tmp_path):
    with pytest.raises(UserError, match=r"unknown to espeak-ng; near it are .*en-us") as caught:
      make(tmp_path, source=self.corpus(tmp_path), language="en-uss")
    assert "\n" not in str(caught.value)

  def test_without_espeak(self, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    prepare.phonemisers._backend.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'albert-jax\[speech\]'"):
      make(tmp_path, source=self.corpus(tmp_path), language="en-us")

  @pytest.mark.realdata
  def test_the_phonemes_of_the_shared_data_are_reproduced(self, real_data):
    lines = [json.loads(line) for line in (real_data / "phonemes_en/train.jsonl").read_text().split("\n")[:400]]
    texts = (real_data / "pretrain/wiki_en/wiki_en_00.txt").read_text().split("\n")
    key = {re.sub(r"[\W_]", "", "".join(split)): split for split in map(words.split, texts[:3000])}
    phonemiser, total, equal = prepare.phonemisers.Espeak("en-us"), 0, 0
    distinct = sorted({word for line in lines for word in line["words"]})
    phonemes = dict(zip(distinct, phonemiser.phonemes(distinct), strict=True))
    for line in lines:
      total += len(line["words"])
      ours = key.get(re.sub(r"[\W_]", "", "".join(line["words"])), [])
      if ours == line["words"]:
        equal += sum(phonemes[word] == theirs for word, theirs in zip(ours, line["phonemes"], strict=True))
    assert total > 20_000 and equal / total >= 0.99


class TestBadInput:
  @pytest.mark.parametrize(
    ("line", "message"),
    [
      ('{"words": ["a", "b"], "phonemes": ["x"]}', "2 words and 1 phonemes .*expected as many"),
      ('{"words": "a b", "phonemes": ["x"]}', "no lists of strings"),
      ('{"text": "a"}', "no lists of strings"),
      ("hello", "'hello' is not JSON"),
      ('{"words": ["a"], "phonemes": [""]}', "no word has phonemes"),
    ],
  )
  def test_lines(self, tmp_path, line, message):
    (tmp_path / "x.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=message) as caught:
      make(tmp_path, source=tmp_path / "x.jsonl", validation_fraction=0.0)
    assert "\n" not in str(caught.value) and not (tmp_path / "dataset").exists()

  def test_lines_without_a_document_are_documents(self, tmp_path):
    lines = [{"document": None, "words": ["a" * i], "phonemes": ["a" * i]} for i in range(1, 9)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert make(tmp_path, source=tmp_path / "x.jsonl", validation_fraction=0.0)["input"]["documents"] == 8

  def test_a_damaged_lexicon(self, tmp_path):
    make(tmp_path)
    path = tmp_path / "dataset/lexicon.npz"
    path.write_bytes(path.read_bytes()[:200] + bytes(path.stat().st_size - 200))
    with pytest.raises(UserError, match=r"lexicon\.npz is damaged \(.*\); copy the dataset again, or make it again"):
      lexicon.load(str(tmp_path / "dataset"))

  def test_an_empty_split(self, tmp_path):
    with pytest.raises(UserError, match="the split that is held out would be empty"):
      make(tmp_path, source=write_lines(tmp_path / "x.jsonl", documents=1))

  def test_the_command_says_what_is_missing(self, tmp_path, capsys):
    assert __main__.main(["phonemes", f"--input={tmp_path}", f"--out={tmp_path / 'x'}"]) == 2
    assert "either --language=CODE" in capsys.readouterr().err

  @pytest.mark.parametrize("option", [
    "--numbers=keep", "--beam_options=--x", "--beam_options=--x --runner=local", "--add_symbols=-1", "--workers=0",
    "--layout=book", "--text_field=x", "--no_cache",
  ])  # fmt: skip
  def test_an_option_that_would_be_ignored(self, tmp_path, capsys, option):
    source = write_lines(tmp_path / "x.jsonl")
    argv = ["phonemes", f"--input={source}", "--phonemised", f"--out={tmp_path / 'out'}", *option.split()]
    try:
      code = __main__.main(argv)
    except SystemExit as stop:  # argparse's way
      code = stop.code
    assert code == 2
    [error] = capsys.readouterr().err.strip().split("\n")
    assert option.split("=")[0] in error and not (tmp_path / "out").exists()

  def test_the_command(self, tmp_path, capsys):
    source = write_lines(tmp_path / "x.jsonl")
    argv = ["phonemes", f"--input={source}", "--phonemised", f"--out={tmp_path / 'out'}", "--workers=1"]
    assert __main__.main(argv) == 0
    out = capsys.readouterr().out
    assert "word targets" in out and "of the words have one" in out and f"made {tmp_path / 'out'}" in out
    assert __main__.main(argv) == 2  # It is there already.

  def test_long_names_of_counts_are_apart_from_their_numbers(self, tmp_path):
    description = make(tmp_path)
    description["input"] = {"files read as --layout=blank": 20}
    assert "files read as --layout=blank 20\n" in command.describe(description)
