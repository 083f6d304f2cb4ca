"""`albert-jax phonemes`: a corpus to a dataset of words with phonemes, once, before any training.

Each unit of work is split into words; the distinct words of the corpus are phonemised, each once; then units become
packed records and shards as in `albert-jax prepare`. What is made does not depend on how many processes work.
"""

import collections
import dataclasses
import io
import json
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from albert_jax import files
from albert_jax.data.corpus import prepare, runners, shards, work_units
from albert_jax.data.speech import batching, phonemisers, units
from albert_jax.data.speech import lexicon as lexicons
from albert_jax.data.speech import symbols as symbol_tables
from albert_jax.data.speech import words as text_words
from albert_jax.data.speech.units import Settings
from albert_jax.errors import UserError

_WORDS_A_JOB = 20_000
_EXAMPLES = 10


def make_dataset(
  spec: str,
  out: str,
  settings: Settings,
  reading: Any,
  *,
  symbols: str = "styletts2",
  add_symbols: int = 0,
  run: Callable | None = None,
  cache: str | None = None,
  overwrite: bool = False,
) -> dict:
  """Makes a dataset of words with phonemes.

  Args:
    spec: the corpus, see work_units.plan. Without `settings.language`: JSON lines with `words` and `phonemes`.
    out: the folder to make.
    settings: Settings.
    reading: work_units.Reading.
    symbols: the symbol table, see symbols.load.
    add_symbols: characters outside the table that occur at least this often are added to it; 0 adds none.
    run: who does the work, see runners.py; None is this process.
    cache: the folder where phonemised words are kept between runs; None keeps none.
    overwrite: replace an existing folder.

  Returns:
    dict, what is also in `out/prepare.json`.

  Raises:
    UserError: see the messages; nothing is left under the name `out`.
  """
  run = run or runners.local(1)
  out = os.path.abspath(os.path.expanduser(out)) if files.is_local(out) else str(out).rstrip("/")
  _check(settings, out, overwrite)
  table = symbol_tables.load(symbols)
  phonemiser = phonemisers.Espeak(settings.language) if settings.language else None
  if settings.language and settings.numbers == "words":
    text_words.number_speller(settings.language)  # Says now if it cannot.
  if settings.words_from:
    lexicons.read_words(settings.words_from)  # Reports an error before the long work.
  parts = work_units.plan(spec, reading)
  identity = {
    "format": 1, "kind": batching.KIND, "corpus": spec, "settings": dataclasses.asdict(settings),
    "reading": dataclasses.asdict(reading), "phonemiser": phonemiser.name if phonemiser else "the corpus",
  }  # fmt: skip
  parent, name = out.rsplit("/", 1)
  partial = f"{parent}/.{name}.partial"
  prepare.continue_or_begin(partial, identity | {"units": [dataclasses.asdict(unit) for unit in parts]})
  folder, sizes, numbers = f"{partial}/units", [unit.size for unit in parts], range(len(parts))
  run(units.split_unit, [(i, parts[i], reading, settings, folder) for i in numbers], sizes, "split into words")
  tables = [_columns(f"{folder}/{i:06d}.words.npz", "entries counts document sizes tally") for i in numbers]
  documents = np.concatenate([t["document"] for t in tables])
  words_of = np.concatenate([t["sizes"] for t in tables])
  _check_corpus(spec, documents[words_of > 0], settings)

  counts = collections.Counter()
  for t in tables:
    counts.update(dict(zip(units.entries_of(t), t["counts"].tolist(), strict=True)))
  entries = sorted(counts, key=lambda entry: (-counts[entry], entry))
  phonemes = _phonemes(entries, phonemiser, settings.language, run, folder, cache)
  findings = _Findings()
  kept, lexicon, targets, table = _lexicon(entries, counts, phonemes, table, settings, add_symbols, findings)
  number_of = {entry: i for i, entry in enumerate(kept)}
  files.write(f"{folder}/sizes.npy", _as_npy(lexicon.sizes))
  for i in numbers:
    lexicon_rows = [number_of.get(entry, -1) for entry in units.entries_of(tables[i])]
    files.write(f"{folder}/{i:06d}.entries.npy", _as_npy(np.array(lexicon_rows, np.int64)))
  run(units.pack_unit, [(i, folder, settings.segment_symbols) for i in numbers], sizes, "pack")

  packed = [shards.load_table(f"{folder}/{i:06d}.npz") for i in numbers]
  is_kept, is_validation = shards.split_documents(documents, settings.validation_fraction)
  has_words = np.concatenate([t["words"] for t in packed]) > 0
  is_kept, is_validation = is_kept & has_words, is_validation & has_words
  members = {"train": is_kept & ~is_validation, "validation": is_validation}
  _check_splits(spec, members, settings)
  members = {split: mask for split, mask in members.items() if mask.any()}
  documents_of = [len(t["document"]) for t in tables]
  copied, lengths, used = shards.copy_units(run, partial, documents_of, members, sizes, len(kept))

  segments_of, symbols_of = (np.concatenate([t[name] for t in packed]) for name in ("segments", "record_symbols"))
  for split, mask in members.items():  # Packing needs the symbols of each record.
    lengths[split] = np.stack([lengths[split][:, 0], symbols_of[np.repeat(mask, segments_of)]], axis=1).astype("<u2")
  total = {key: np.concatenate([t[key] for t in packed]) for key in ("words", "symbols")}
  tally = sum((collections.Counter(json.loads(str(t["tally"]))) for t in tables), collections.Counter())
  description = identity | {
    "vocabulary": {"file": symbol_tables.FILE, "size": table.vocab_size, "words": lexicons.FIRST_WORD + len(targets)},
    "input": {
      "documents": len(documents),
      "duplicate_documents": len(documents) - len(np.unique(documents)),
      **dict(sorted(tally.items())),
    },
    "words": findings.numbers | _target_numbers(lexicon, used["train"], len(targets)),
    "splits": {
      split: {
        "documents": int(mask.sum()), "segments": len(lengths[split]), "words": int(total["words"][mask].sum()),
        "symbols": int(total["symbols"][mask].sum()),
      }
      for split, mask in members.items()
    },
    "baselines": _baselines(lexicon, table, used) if "validation" in used else {},
  }  # fmt: skip
  lexicons.save(f"{partial}/dataset", lexicon, targets, table)
  prepare.finish(partial, out, copied, lengths, description)
  return description


def _columns(file, names):
  """Some columns of a table; the words themselves, which are as many as the corpus has, stay in the file."""
  with np.load(io.BytesIO(files.read(file))) as table:
    return {name: table[name] for name in names.split()}


def _check(settings, out, overwrite):
  if not 0 <= settings.validation_fraction < 1:
    raise UserError(
      f"--validation_fraction={settings.validation_fraction} leaves nothing to train on or is no fraction; expected a "
      "number from 0 to below 1, such as 0.05"
    )
  if not 64 <= settings.segment_symbols <= 32768:
    raise UserError(f"--segment_symbols={settings.segment_symbols}: expected 64 to 32768; twice the length to train at")
  if settings.words < 1:
    raise UserError(f"--words={settings.words}: expected 1 or more; 30000 are usual")
  files.check_new_folder(out, overwrite=overwrite)


def _check_corpus(spec, documents, settings):
  distinct = len(np.unique(documents))
  if not distinct:
    raise UserError(f"--input={spec} has no words at all; expected text, a blank line between documents")
  if settings.validation_fraction and distinct < 2:
    raise UserError(
      f"--input={spec} is one document, so the split that is held out would be empty; separate documents with blank "
      "lines (see --layout), or add --validation_fraction=0"
    )


def _check_splits(spec, members, settings):
  for split, mask in members.items():
    if not mask.any() and (split == "train" or settings.validation_fraction):
      raise UserError(
        f"--input={spec}: the split {split} is empty, because no word of its documents has phonemes; give more "
        f"documents, or another --validation_fraction than {settings.validation_fraction}"
      )


def _as_npy(array):
  data = io.BytesIO()
  np.save(data, array)
  return data.getvalue()


# Phonemes.


def _phonemes(entries, phonemiser, language, run, folder, cache) -> dict[str, str]:
  """Returns {entry: phonemes} of all entries, from the corpus, the cache or the phonemiser."""
  if phonemiser is None:
    return {entry: units.word_and_phonemes(entry)[1] or "" for entry in entries}
  file = f"{cache}/{phonemiser.name}.tsv" if cache else None
  known = _read_cache(file) if file and files.exists(file) else {}
  known |= {entry: entry for entry in entries if text_words.is_punctuation(entry)}
  new = sorted(entry for entry in entries if entry not in known)
  jobs = [(tuple(new[first : first + _WORDS_A_JOB]), language, folder) for first in range(0, len(new), _WORDS_A_JOB)]
  if jobs:
    run(units.phonemise_words, jobs, [sum(map(len, job[0])) for job in jobs], "phonemise")
    for words, _, _ in jobs:
      results = json.loads(files.read(units.phoneme_file(folder, words)))
      known |= dict(zip(words, results, strict=True))
    if file:
      files.write(file, "".join(f"{word}\t{known[word]}\n" for word in sorted(known)).encode())
  return {entry: known[entry] for entry in entries}


def _read_cache(file):
  try:
    lines = files.read(file).decode().split("\n")[:-1]
  except UnicodeDecodeError:
    raise UserError(f"{file}, the cache of phonemised words, is damaged; remove it, or add --no_cache") from None
  return dict(line.split("\t", 1) for line in lines if "\t" in line)


class _Findings:
  """What is worth knowing of the words, with examples: `numbers`, plain values for the description."""

  def __init__(self):
    self.numbers = {}

  def add(self, name, entries, counts, examples) -> None:
    """Notes a group of entries: how many, how often they occur, and the most frequent."""
    total = max(1, sum(counts.values()))
    occurrences = sum(counts[entry] for entry in entries)
    self.numbers[name] = {
      "distinct": len(entries), "occurrences": occurrences, "share": occurrences / total,
      "examples": {units.word_and_phonemes(entry)[0]: examples(entry) for entry in entries[:_EXAMPLES]},
    }  # fmt: skip


def _lexicon(entries, counts, phonemes, table, settings, add_symbols, findings):
  """Returns (entries with phonemes, Lexicon, targets, symbol table)."""
  clean, switched = {}, []
  for entry in entries:
    clean[entry], is_switched = phonemisers.without_flags(phonemes[entry])
    if is_switched:
      switched.append(entry)
  characters = collections.Counter()
  for entry, text in clean.items():
    for character in text:
      characters[character] += counts[entry]
  if add_symbols:
    new = [c for c, n in sorted(characters.items(), key=lambda item: (-item[1], item[0])) if n >= add_symbols]
    table = table.extended(new)
  kept = [entry for entry in entries if 0 < len(clean[entry]) <= units.MAX_SYMBOLS]
  if not kept:
    raise UserError(
      f"no word has phonemes; the most frequent ones are {', '.join(entries[:5])}: is --language right for this text?"
    )
  outside = {c: n for c, n in characters.items() if c not in table}
  first_with = {}
  for entry in kept:
    for character in clean[entry]:
      if character in outside:
        first_with.setdefault(character, units.word_and_phonemes(entry)[0])

  findings.numbers |= {"distinct": len(entries), "occurrences": sum(counts.values())}
  findings.add("without_phonemes", [e for e in entries if not clean[e]], counts, lambda e: counts[e])
  findings.add("too_long", [e for e in entries if len(clean[e]) > units.MAX_SYMBOLS], counts, lambda e: clean[e][:40])
  findings.add("language_switches", switched, counts, lambda e: phonemes[e])
  digits = [e for e in entries if text_words.is_number(units.word_and_phonemes(e)[0])]
  findings.add("numbers_as_digits", digits, counts, lambda e: clean[e])
  findings.numbers["outside_the_table"] = {
    "occurrences": sum(outside.values()), "share": sum(outside.values()) / max(1, sum(characters.values())),
    "examples": {
      c: {"occurrences": n, "in": first_with.get(c, "")}
      for c, n in sorted(outside.items(), key=lambda item: -item[1])[:_EXAMPLES]
    },
  }  # fmt: skip
  words = [units.word_and_phonemes(entry)[0] for entry in kept]
  often = collections.Counter()
  for entry, word in zip(kept, words, strict=True):
    often[word] += counts[entry]
  if settings.words_from:
    targets = lexicons.read_words(settings.words_from)
  else:
    targets = sorted(often, key=lambda word: (-often[word], word))[: settings.words]
  return kept, lexicons.build(words, [clean[e] for e in kept], targets, table), targets, table


def _target_numbers(lexicon, counts, targets):
  """How well the targets of the word loss describe the training data: `coverage` of its words, `target_entropy`."""
  by_target = np.bincount(lexicon.target, weights=counts)
  known = by_target[lexicons.FIRST_WORD :]
  p = known[known > 0] / max(1, known.sum())
  return {
    "coverage": float(known.sum() / max(1, by_target.sum())),
    "target_entropy": float(-(p * np.log(p)).sum()),
    "target_entropy_at_most": math.log(max(1, targets)),
  }


def _baselines(lexicon, table, used):
  """What word and symbol frequencies of the training split alone reach on the held-out split."""
  symbols, targets = {}, {}
  sizes, owner = lexicon.sizes, np.repeat(np.arange(len(lexicon.target)), lexicon.sizes)
  for split, counts in used.items():
    symbols[split] = np.bincount(lexicon.symbols, weights=counts[owner], minlength=table.vocab_size)
    targets[split] = np.bincount(lexicon.target, weights=counts * sizes)
    targets[split][lexicons.SPACE] = counts.sum()
  special = [table.pad_id, table.mask_id, table.space_id]
  both = {
    "phoneme": shards.baselines(symbols["train"], symbols["validation"], special),
    "word": shards.baselines(targets["train"], targets["validation"], [lexicons.UNKNOWN]),
  }
  words_only = shards.baselines(targets["train"], targets["validation"], [lexicons.SPACE, lexicons.UNKNOWN])
  return {
    "phoneme_loss": both["phoneme"]["unigram_loss"], "phoneme_accuracy": both["phoneme"]["top_token_accuracy"],
    "word_loss": both["word"]["unigram_loss"], "word_accuracy": words_only["top_token_accuracy"],
  }  # fmt: skip
