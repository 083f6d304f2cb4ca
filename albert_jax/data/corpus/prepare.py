"""Converts a corpus to a TFDS dataset of token segments, once, before training (`albert-jax prepare`).

First, each unit of work (see work_units.py) is tokenised to a file of packed records and a table of its documents
(segments.py); a killed run keeps its finished units. Second, duplicates are dropped, documents are split into train and
validation, and the units are copied into shards (shards.py). The dataset does not depend on the number or kind of the
worker processes (runners.py).
"""

import collections
import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from albert_jax import files
from albert_jax.data import datasets, records
from albert_jax.data.corpus import marks, near_duplicates, readers, runners, segments, shards, work_units
from albert_jax.data.tokenizer import RULES_FILE, Tokenizer, recorded_rules, rules_file
from albert_jax.errors import UserError

LONE_SHARE = 0.2  # of documents of one sentence, from which `notes` reports them
FEW_SEGMENTS = 32  # held out, below which `notes` calls the held-out numbers noisy
INVALID_SHARE = 0.01  # of lines that are not UTF-8 in the sentences, from which `notes` reports them


def notes(description: dict[str, Any]) -> list[str]:
  """Lists what is unusual in a dataset that was made, each with what to change.

  Args:
    description: of the dataset, see `prepare`.

  Returns:
    Sentences; [] if nothing is unusual.
  """
  texts, splits, read = [], description["splits"], description["input"]
  lone = read.get("documents of one sentence", 0) / read["documents"]
  if lone > LONE_SHARE:
    texts.append(
      f"{lone:.0%} of the documents are one sentence, which has no pair; where blank lines separate paragraphs "
      "instead of documents, use --layout=book"
    )
  invalid = read.get("lines with invalid UTF-8", 0)
  if invalid > INVALID_SHARE * sum(split["sentences"] for split in splits.values()):
    texts.append(
      f"{invalid:,} lines have characters that are not UTF-8, which were replaced; if the files have another encoding, "
      "name it, as --encoding=cp1252"
    )
  fraction = description["settings"]["validation_fraction"]
  if not fraction or "validation" not in splits:
    return texts
  held, documents = splits["validation"], sum(split["documents"] for split in splits.values())
  share = held["tokens"] / max(1, sum(split["tokens"] for split in splits.values()))
  if share > max(2 * fraction, fraction + 0.05):
    texts.append(
      f"{share:.0%} of the tokens are held out instead of {fraction:.0%}, because whole documents are: "
      f"{held['documents']} of {documents}. Split long texts into more documents, such as chapters with a blank line "
      "between them, or use --validation_fraction=0"
    )
  elif held["segments"] < FEW_SEGMENTS:
    texts.append(
      f"only {held['segments']} segments ({held['documents']} of {documents} documents) are held out, so held-out "
      "numbers will be noisy; raise --validation_fraction, or give more documents"
    )
  return texts


def _check(settings, out, overwrite):
  if not 0 <= settings.validation_fraction < 1:
    raise UserError(
      f"--validation_fraction={settings.validation_fraction} is not a fraction or leaves no training data; expected a "
      "number from 0 to below 1, such as 0.05"
    )
  if not 0 <= settings.near_duplicates <= 1:
    raise UserError(
      f"--near_duplicates={settings.near_duplicates:g}: expected 0 (keep all) to 1 (drop equal ones), such as 0.8"
    )
  if not 8 <= settings.segment_tokens <= records.MAX_TOKENS:
    raise UserError(
      f"--segment_tokens={settings.segment_tokens}: expected 8 to {records.MAX_TOKENS}; use the longest length "
      "that you will train at, such as 512"
    )
  files.check_new_folder(out, overwrite=overwrite)


def _follow_rules(settings, spm, units, reading):
  """Returns the settings with `lower` and `keep_accents` set: as passed, as recorded, or by the corpus."""
  recorded = recorded_rules(spm)
  for name in ("lower", "keep_accents"):
    value = getattr(settings, name)
    if value is not None and recorded.get(name, value) != value:
      flag, other = (f"--{name}", f"--no-{name}") if value else (f"--no-{name}", f"--{name}")
      raise UserError(
        f"{flag}: the vocabulary {spm} was trained with {other}, as the {RULES_FILE} beside it says; leave the flag "
        "out, or train another vocabulary"
      )
  rules = {name: value for name, value in dataclasses.asdict(settings).items() if value is not None}
  lower, keep_accents = (rules.get(name, recorded.get(name)) for name in ("lower", "keep_accents"))
  if keep_accents is None:
    keep_accents = marks.keep_accents(marks.measure_corpus(units, reading), is_recorded=False)
  return dataclasses.replace(settings, lower=True if lower is None else lower, keep_accents=keep_accents)


def prepare(
  spec: str,
  spm: str | os.PathLike,
  out: str | os.PathLike,
  settings: segments.Settings | None = None,
  reading: work_units.Reading | None = None,
  *,
  run: Callable | None = None,
  overwrite: bool = False,
  mlm_only: bool = False,
) -> dict[str, Any]:
  """Makes a dataset of token segments.

  Args:
    spec: the corpus (see work_units.plan).
    spm: path of the vocabulary.
    out: path of the folder to make: `tfds.builder_from_directory(out)` reads it, and it holds its vocabulary.
    settings: what the records depend on, beside the corpus; None is `Settings()`.
    reading: how to read the corpus; None is `Reading()`.
    run: runs the jobs, see runners.py; None is this process.
    overwrite: replace an existing folder.
    mlm_only: accept a corpus without a single pair of sentences.

  Returns:
    The contents of `out/prepare.json`.

  Raises:
    UserError: an argument or the corpus is invalid; no file remains.
  """
  run, settings, reading = run or runners.local(1), settings or segments.Settings(), reading or work_units.Reading()
  out = os.path.abspath(files.user_path(out, "--out")) if files.is_local(out) else str(out).rstrip("/")
  _check(settings, out, overwrite)
  Tokenizer(spm)  # Says now if there is none.
  units = work_units.plan(spec, reading)
  settings = _follow_rules(settings, spm, units, reading)
  tokenizer = Tokenizer(spm, lower=settings.lower, keep_accents=settings.keep_accents)
  spm = os.path.abspath(tokenizer.path)
  identity = {
    "format": 1,
    "corpus": spec,
    "settings": dataclasses.asdict(settings),
    "reading": dataclasses.asdict(reading),
    "vocabulary": {"file": pathlib.Path(spm).name, "sha256": datasets.sha256(spm), "size": tokenizer.vocab_size},
  }
  parent, name = out.rsplit("/", 1)
  partial = f"{parent}/.{name}.partial"
  try:
    return _prepare(units, reading, settings, tokenizer, identity, partial, out, run, mlm_only)
  except UserError:
    files.remove(partial)  # A killed run can be continued, a refused run cannot.
    raise


def _prepare(units, reading, settings, tokenizer, identity, partial, out, run, mlm_only):
  """Makes the dataset in the temporary folder `partial`; see `prepare`."""
  spec, spm = identity["corpus"], tokenizer.path
  continue_or_begin(partial, identity | {"units": [dataclasses.asdict(unit) for unit in units]})
  sizes = [unit.size for unit in units]

  jobs = [(i, unit, reading, settings, spm, f"{partial}/units") for i, unit in enumerate(units)]
  run(segments.tokenise_unit, jobs, sizes, "tokenise")
  tables = [shards.load_table(f"{partial}/units/{i:06d}.npz") for i in range(len(units))]
  corpus = {key: np.concatenate([t[key] for t in tables]) for key in ("document", "tokens", "sentences", "unknown")}
  tally = sum((collections.Counter(json.loads(str(t["tally"]))) for t in tables), collections.Counter())
  _check_corpus(corpus, sum(int(t["pairs"]) for t in tables), spec, settings, mlm_only, tally)

  is_kept, is_validation = shards.split_documents(corpus["document"], settings.validation_fraction)
  is_kept &= corpus["tokens"] > 0
  is_near = np.zeros(len(is_kept), bool)
  if settings.near_duplicates:
    sketches = np.concatenate([t["sketch"] for t in tables])
    is_near = near_duplicates.find(sketches, is_kept, settings.near_duplicates)
    is_kept &= ~is_near
  is_validation &= is_kept
  members = {"train": is_kept & ~is_validation, "validation": is_validation}
  members = {split: mask for split, mask in members.items() if mask.any()}
  documents = [len(t["document"]) for t in tables]
  parts, lengths, counts = shards.copy_units(run, partial, documents, members, sizes, tokenizer.vocab_size)

  special = [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]
  description = identity | {
    "input": {
      "documents": len(is_kept),
      "duplicate_documents": _duplicates(corpus),
      "near_duplicate_documents": int(is_near.sum()),
      **dict(sorted(tally.items())),
    },
    "splits": {split: _split_counts(corpus, mask, len(lengths[split])) for split, mask in members.items()},
    "baselines": shards.baselines(counts["train"], counts["validation"], special) if "validation" in counts else {},
  }
  files.write(f"{partial}/dataset/{pathlib.Path(spm).name}", pathlib.Path(spm).read_bytes())
  if spm.endswith(".model"):
    rules = rules_file(settings.lower, settings.keep_accents)
    files.write(f"{partial}/dataset/{RULES_FILE}", rules)
  finish(partial, out, parts, lengths, description)
  return description


def finish(
  partial: str, out: str, parts: list[dict], lengths: dict[str, np.ndarray], description: dict[str, Any]
) -> None:
  """Adds metadata to the shards in `partial/dataset`, and renames the folder to `out`.

  Args:
    parts: tables of shards.copy_unit.
    lengths: {split: array}, see datasets.lengths_file.
    description: of the dataset; the sizes of all files are added to it.
  """
  dataset = f"{partial}/dataset"
  for name, data in shards.metadata(parts, list(lengths)).items():
    files.write(f"{dataset}/{name}", data)
  for split, array in lengths.items():  # Packing needs the lengths without reading all records.
    buffer = io.BytesIO()
    np.save(buffer, array)
    files.write(f"{dataset}/{datasets.lengths_file(split)}", buffer.getvalue())
  description["files"] = files.sizes(dataset)
  files.write(f"{dataset}/{datasets.DESCRIPTION_FILE}", (json.dumps(description, indent=2) + "\n").encode())
  files.remove(out)
  files.move(dataset, out)
  files.remove(partial)


def continue_or_begin(partial: str, identity: dict[str, Any]) -> None:
  """Keeps the units of a killed run if they are of the same data; otherwise removes them."""
  text = json.dumps(identity, sort_keys=True).encode()
  mark = f"{partial}/identity.json"
  if not files.exists(mark) or files.read(mark) != text:
    files.remove(partial)
    files.write(mark, text)


def _duplicates(corpus):
  documents = corpus["document"][corpus["tokens"] > 0]
  return len(documents) - len(np.unique(documents))


def _check_corpus(corpus, pairs, spec, settings, mlm_only, tally):
  contents = f"--input={spec} has {len(corpus['document'])} documents, {int(corpus['sentences'].sum())} sentences"
  distinct = len(np.unique(corpus["document"][corpus["tokens"] > 0]))
  if not distinct:
    raise readers.no_text(spec, tally)
  if settings.validation_fraction and distinct < 2:
    raise UserError(
      f"{contents}, all in one document, which cannot be both trained on and held out; separate documents with blank "
      "lines, or add --validation_fraction=0"
    )
  if not pairs and not mlm_only:
    raise UserError(
      f"{contents}, but no document has two sentences, so there is no pair to put in order; expected several "
      "paragraphs or sentences in each document and a blank line between documents (see --layout); add --mlm_only if "
      "this is meant"
    )


def _split_counts(corpus, mask, segment_count):
  tokens = int(corpus["tokens"][mask].sum())
  return {
    "documents": int(mask.sum()),
    "segments": segment_count,
    "sentences": int(corpus["sentences"][mask].sum()),
    "tokens": tokens,
    "unknown_rate": float(corpus["unknown"][mask].sum() / max(1, tokens)),
  }
