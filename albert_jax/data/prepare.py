"""`albert-jax prepare`: a corpus to a TFDS dataset of token segments, once, before any training.

In two steps. Each unit of work (see readers.py) is tokenised into a file of packed records and a list of its documents;
a killed run keeps the units it has finished. Then, with all documents known, duplicates are dropped, documents are
split into train and validation, and the units are copied into shards. Neither step depends on how many processes work.
"""

import argparse
import collections
import concurrent.futures
import dataclasses
import itertools
import json
import multiprocessing
import os
import pathlib
import shutil

import numpy as np
import tqdm

from albert_jax.data import readers, records
from albert_jax.data.sentences import split_sentences
from albert_jax.data.source import DESCRIPTION_FILE, lengths_file, sha256
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError

NAME = "albert_segments"  # the TFDS name; it also starts the names of the shards
_BATCH_CHARS = 1 << 19  # how much text is tokenised at a time: enough to be fast, little enough to be small
_GROUP_CHARS = 2000  # how much is given to SentencePiece as one text; more or less is slower
_COPY_RECORDS = 1024


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the records depend on, beside the corpus itself.

  Attributes:
    segment_tokens: the model length that segments should fill, its three special tokens included.
    sentences: `split` prose lines into sentences, or take each `line` as one.
    lower, keep_accents: see tokenizer.normalize.
    validation_fraction: the share of the documents that is held out.
  """

  segment_tokens: int = 512
  sentences: str = "split"
  lower: bool = True
  keep_accents: bool = False
  validation_fraction: float = 0.05


# First step: a unit of work to packed records.


def segment_bounds(lengths, limit):
  """Cuts a document into segments of whole sentences.

  Args:
    lengths: list of n ints ≥ 1, tokens in each sentence.
    limit: the most tokens in a segment; a longer sentence is cut.

  Returns:
    list of list[int]: for each segment the lengths of its sentences. All their sums are at most `limit`, and together
    they are `lengths` but for the cuts.
  """
  segments, current, size = [], [], 0
  for length in lengths:
    while length > limit:
      segments += [current] if current else []
      segments.append([limit])
      current, size, length = [], 0, length - limit
    if size + length > limit:
      segments.append(current)
      current, size = [], 0
    current.append(length)
    size += length
  return [*segments, current] if current else segments


class _Encoder:
  """Tokenises documents in batches that span documents; the order is kept."""

  def __init__(self, tokenizer, settings):
    self.settings = settings
    # The original's second look at pieces such as `2010,` is done here for whole arrays: `_expand`.
    self.tokenizer = Tokenizer(tokenizer.path, tokenizer.lower, tokenizer.keep_accents, digit_comma=False)
    self.expansion = {i: np.array(parts) for i, parts in tokenizer._resplit_ids.items()}
    self.expands = np.isin(np.arange(tokenizer.vocab_size), list(self.expansion))
    self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    self.starts_word = records.word_starts(tokenizer.pieces)
    self.has_space = np.array([piece.startswith("▁") for piece in tokenizer.pieces])

  def sentences(self, lines):
    """The sentences of a document, with single spaces between words."""
    # Printable text has no white space but the space, so most lines need no look at each word.
    lines = [line if "  " not in line and line.isprintable() else " ".join(line.split()) for line in lines]
    return [s for line in lines for s in split_sentences(line)] if self.settings.sentences == "split" else lines

  def documents(self, documents):
    """Yields (document id, ids [T], sentence lengths) of an iterable of documents."""
    waiting, size = [], 0
    for lines in documents:
      sentences = self.sentences(lines)
      waiting.append((records.document_id(lines), sentences))
      size += sum(map(len, sentences))
      if size > _BATCH_CHARS:
        yield from self._flush(waiting)
        waiting, size = [], 0
    yield from self._flush(waiting)

  def _flush(self, waiting):
    ids, lengths = self.encode([s for _, document in waiting for s in document])
    token, sentence = 0, 0
    for document, sentences in waiting:
      own = lengths[sentence : sentence + len(sentences)]
      size = sum(own)
      yield document, ids[token : token + size], [n for n in own if n]
      token += size
      sentence += len(sentences)

  def encode(self, sentences):
    """The ids of sentences, joined, and the list of how many each has."""
    parts, lengths, first, size = [np.zeros(0, self.dtype)], [], 0, 0
    for i, sentence in enumerate(sentences):
      size += len(sentence)
      # Lists of Python ints are large, so even a single document is tokenised a part at a time.
      if size > _BATCH_CHARS or i == len(sentences) - 1:
        part, part_lengths = self._encode_together(sentences[first : i + 1])
        parts.append(part)
        lengths += part_lengths
        first, size = i + 1, 0
    return np.concatenate(parts), lengths

  def _encode_together(self, sentences):
    """`encode`, faster: SentencePiece is given runs of sentences as one text.

    No piece reaches over a space and every space starts a piece, so the pieces are those of the sentences alone, and
    counting spaces finds where they begin. Where that does not work out (normalising a word made none of it, or two),
    the sentences of a run are encoded one by one.
    """
    words = np.array([sentence.count(" ") + 1 for sentence in sentences])
    size = np.cumsum([len(sentence) for sentence in sentences])
    run = size // _GROUP_CHARS if self.has_space.any() else np.arange(len(sentences))
    first = np.flatnonzero(np.diff(run, prepend=-1))  # the first sentence of each run
    stops = [*first[1:].tolist(), len(sentences)]
    encoded = self.tokenizer.encode_batch(
      [" ".join(sentences[a:b]) for a, b in zip(first.tolist(), stops, strict=True)]
    )
    while True:
      ids, begin = self._flatten(encoded)
      spaces = np.flatnonzero(self.has_space[ids])
      before = np.searchsorted(spaces, begin)  # spaces before each run
      count = np.diff(first, append=len(sentences))  # sentences in each run
      is_wrong = (np.diff(before, append=len(spaces)) != np.add.reduceat(words, first)) & (count > 1)
      if not is_wrong.any():
        break
      apart = iter(self.tokenizer.encode_batch(list(itertools.compress(sentences, np.repeat(is_wrong, count)))))
      encoded = [
        part
        for ids, n, wrong in zip(encoded, count.tolist(), is_wrong.tolist(), strict=True)
        for part in (itertools.islice(apart, n) if wrong else [ids])
      ]
      first = np.flatnonzero(np.repeat(is_wrong, count) | np.isin(np.arange(len(sentences)), first))
    words_before = np.cumsum(words) - words
    nth = words_before - np.repeat(words_before[first] - before, count)
    starts = np.append(spaces, 0)[np.minimum(nth, len(spaces))]
    starts[first] = begin  # also where a run of one sentence has another number of spaces than words
    return ids, np.diff(starts, append=len(ids)).tolist()

  def _flatten(self, encoded):
    """Lists of ids as one array, pieces that end in a digit and a comma taken apart; and where each list begins."""
    sizes = np.array(list(map(len, encoded)))
    ids = np.fromiter(itertools.chain.from_iterable(encoded), self.dtype, sizes.sum())
    begin = np.cumsum(sizes) - sizes
    places = np.flatnonzero(self.expands[ids])
    if len(places):
      parts = [self.expansion[i] for i in ids[places].tolist()]
      widths = np.ones(len(ids) + 1, np.int64)
      widths[places] = list(map(len, parts))
      moved = np.cumsum(widths) - widths
      ids = np.repeat(ids, widths[:-1])
      ids[records.ragged(moved[places], widths[places])] = np.concatenate(parts)
      begin = moved[begin]
    return ids, begin

  def pack(self, document, ids, lengths):
    """Yields the packed segments of a document."""
    token = 0
    for segment in segment_bounds(lengths, self.settings.segment_tokens - 3):
      size = sum(segment)
      own = ids[token : token + size]
      starts = np.cumsum([0, *segment[:-1]]).astype("<u2")
      yield records.pack(own, starts, self.starts_word[own], document), len(segment)
      token += size


def _tokenise_unit(number, unit, reading, settings, spm, folder):
  """Makes `folder/NUMBER.records` and, as a sign that it is whole, `folder/NUMBER.npz`."""
  path = pathlib.Path(folder) / f"{number:06d}"
  if path.with_suffix(".npz").exists():
    return number
  tokenizer = Tokenizer(spm, lower=settings.lower, keep_accents=settings.keep_accents)
  encoder, unknown = _Encoder(tokenizer, settings), tokenizer.unk_id
  tally = collections.Counter()
  documents, sizes, pairs = [], [], 0
  with path.with_suffix(".records").open("wb") as file:
    for document, ids, lengths in encoder.documents(readers.documents(unit, reading, tally)):
      first = len(sizes)
      for packed, sentences in encoder.pack(document, ids, lengths):
        file.write(packed)
        sizes.append(len(packed))
        pairs += sentences > 1
      tally["documents without tokens"] += not lengths
      tally["documents of one sentence"] += len(lengths) == 1
      tally["sentences longer than a segment"] += sum(n > settings.segment_tokens - 3 for n in lengths)
      documents.append((document, len(sizes) - first, len(ids), len(lengths), int((ids == unknown).sum())))
  columns = np.array(documents, np.uint64).reshape(-1, 5).T
  temporary = path.with_suffix(".tmp.npz")
  np.savez(
    temporary,
    document=columns[0],
    segments=columns[1].astype(np.int64),
    tokens=columns[2].astype(np.int64),
    sentences=columns[3].astype(np.int64),
    unknown=columns[4].astype(np.int64),
    sizes=np.array(sizes, np.int64),
    pairs=pairs,
    tally=json.dumps(tally),
  )
  temporary.rename(path.with_suffix(".npz"))
  return number


# Second step: packed records to the shards of a TFDS dataset.


def split_documents(documents, fraction):
  """Chooses which documents are kept and which of them are held out.

  Args:
    documents: uint64 array [n], the document ids of a corpus in its order.
    fraction: the share to hold out, 0 ≤ fraction < 1.

  Returns:
    (is_kept, is_validation): bool arrays [n]. The first of several equal documents is kept. Whether one is held out
    depends on its own id alone; but where that would leave a split empty, it gets the document that is next in line.
  """
  _, first = np.unique(documents, return_index=True)
  is_kept = np.zeros(len(documents), bool)
  is_kept[first] = True
  threshold = int(fraction * 2**64)
  kept = documents[is_kept]
  if fraction and len(kept) > 1:
    threshold = min(max(threshold, int(kept.min()) + 1), int(kept.max()))
  is_validation = is_kept & np.array([int(d) < threshold for d in documents], bool)
  return is_kept, is_validation


def _copy_unit(number, folder, is_kept, is_validation, shards, vocab_size):
  """Copies a unit's records into its shards.

  Args:
    is_kept, is_validation: bool arrays over the unit's documents.
    shards: {split: path}, without the splits that get nothing.

  Returns:
    {split: (records, bytes, token counts [V], list of uint16 [n, 2]: tokens and sentences of each record)}.
  """
  from array_record.python.array_record_module import ArrayRecordWriter
  from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

  path = pathlib.Path(folder) / f"{number:06d}"
  with np.load(path.with_suffix(".npz")) as table:
    owner = np.repeat(np.arange(len(is_kept)), table["segments"])
    sizes = table["sizes"]
  # Records are read one by one at random, so nothing is gained by compressing groups of them, and little by compressing
  # ids; reading is a third faster without.
  writers = {split: ArrayRecordWriter(str(shard), "group_size:1,uncompressed") for split, shard in shards.items()}
  result = {split: [0, 0, np.zeros(vocab_size, np.int64), []] for split in shards}
  with path.with_suffix(".records").open("rb") as file:
    for i in range(0, len(sizes), _COPY_RECORDS):
      batch = {split: [] for split in shards}
      for size, document in zip(sizes[i : i + _COPY_RECORDS].tolist(), owner[i : i + _COPY_RECORDS], strict=True):
        packed = file.read(size)
        if is_kept[document]:
          batch["validation" if is_validation[document] else "train"].append(packed)
      for split, packed in batch.items():
        for record in packed:
          feature = tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[record]))
          features = tf_feature_pb2.Features(feature={"record": feature})
          example = tf_example_pb2.Example(features=features).SerializeToString()
          writers[split].write(example)
          result[split][1] += len(example)
        if packed:
          many = records.unpack(packed)
          ids = many.ids[records.ragged(many.id_base, many.tokens)]
          result[split][2] += np.bincount(ids, minlength=vocab_size)
          result[split][0] += len(packed)
          result[split][3].append(np.stack([many.tokens, many.sentences], axis=1).astype("<u2"))
  for writer in writers.values():
    writer.close()
  return {split: tuple(values) for split, values in result.items()}


def baselines(train, validation, special_ids):
  """What a model that only knows how frequent tokens are would reach on the validation split.

  Args:
    train, validation: int64 arrays [V], how often each token occurs.
    special_ids: ids that are never predicted.

  Returns:
    dict: `unigram_loss` in nats a token (add-one smoothing) and `top_token_accuracy`.
  """
  ordinary = np.ones(len(train), bool)
  ordinary[special_ids] = False
  train, validation = train[ordinary], validation[ordinary]
  log_p = np.log(train + 1) - np.log(np.sum(train + 1))
  total = max(1, validation.sum())
  return {
    "unigram_loss": float(-(validation * log_p).sum() / total),
    "top_token_accuracy": float(validation[train.argmax()] / total),
  }


# The command.


def _run(function, jobs, workers, bar):
  """Calls `function` on many argument tuples, in this process or several; yields (job number, result) as they come."""
  if workers <= 1 or len(jobs) == 1:
    for i, (size, *args) in enumerate(jobs):
      yield i, function(*args)
      bar.update(size)
    return
  # `spawn`, because a forked child inherits locks that threads of the parent may hold.
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
    futures = {pool.submit(function, *args): (i, size) for i, (size, *args) in enumerate(jobs)}
    try:
      for future in concurrent.futures.as_completed(futures):
        i, size = futures[future]
        yield i, future.result()
        bar.update(size)
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def _bar(total, title):
  return tqdm.tqdm(total=total, unit="B", unit_scale=True, desc=title, mininterval=0.5)


def _check(settings, out, overwrite):
  if not 0 <= settings.validation_fraction < 1:
    raise UserError(
      f"--validation_fraction={settings.validation_fraction} leaves nothing to train on or is no fraction; expected a "
      "number from 0 to below 1, such as 0.05"
    )
  if not 8 <= settings.segment_tokens <= records.MAX_TOKENS:
    raise UserError(
      f"--segment_tokens={settings.segment_tokens}: expected 8 to {records.MAX_TOKENS}; use the longest length "
      "that you will train at, such as 512"
    )
  if out.exists() and not overwrite:
    raise UserError(f"{out} is already there; choose another --out, or add --overwrite to replace it")


def prepare(spec, spm, out, settings, reading, *, workers=1, overwrite=False, mlm_only=False):
  """Makes a dataset of token segments.

  Args:
    spec: str, the corpus (see readers.plan).
    spm: path of the vocabulary.
    out: path of the folder to make: `tfds.builder_from_directory(out)` reads it, and it holds its vocabulary.
    settings: Settings.
    reading: readers.Reading.
    workers: processes.
    overwrite: replace an existing folder.
    mlm_only: accept a corpus without a single pair of sentences.

  Returns:
    dict, what is also in `out/prepare.json`.

  Raises:
    UserError: see the messages; nothing is left under the name `out`.
  """
  out = pathlib.Path(out).absolute()
  _check(settings, out, overwrite)
  tokenizer = Tokenizer(spm, lower=settings.lower, keep_accents=settings.keep_accents)
  spm = tokenizer.path
  units = readers.plan(spec, reading)
  identity = {
    "format": 1,
    "corpus": spec,
    "settings": dataclasses.asdict(settings),
    "reading": dataclasses.asdict(reading),
    "vocabulary": {"file": pathlib.Path(spm).name, "sha256": sha256(spm), "size": tokenizer.vocab_size},
  }
  partial = out.with_name(f".{out.name}.partial")
  _continue_or_begin(partial, identity | {"units": [dataclasses.asdict(unit) for unit in units]})

  with _bar(sum(unit.size for unit in units), "tokenise") as bar:
    jobs = [(u.size, i, u, reading, settings, spm, str(partial / "units")) for i, u in enumerate(units)]
    collections.deque(_run(_tokenise_unit, jobs, workers, bar), maxlen=0)
  tables = [_load_table(partial / "units" / f"{i:06d}.npz") for i in range(len(units))]
  corpus = {key: np.concatenate([t[key] for t in tables]) for key in ("document", "tokens", "sentences", "unknown")}
  _check_corpus(corpus, sum(int(t["pairs"]) for t in tables), spec, settings, mlm_only)

  is_kept, is_validation = split_documents(corpus["document"], settings.validation_fraction)
  is_kept &= corpus["tokens"] > 0
  is_validation &= is_kept
  ends = np.cumsum([len(t["document"]) for t in tables])
  members = {"train": is_kept & ~is_validation, "validation": is_validation}
  members = {split: np.split(mask, ends[:-1]) for split, mask in members.items() if mask.any()}

  dataset = partial / "dataset"
  shutil.rmtree(dataset, ignore_errors=True)
  dataset.mkdir()
  templates, shards = _name_shards(dataset, members)
  parts = {}
  with _bar(sum(unit.size for unit in units), "write") as bar:
    kept, held = np.split(is_kept, ends[:-1]), np.split(is_validation, ends[:-1])
    jobs = [
      (unit.size, i, str(partial / "units"), kept[i], held[i], shards[i], tokenizer.vocab_size)
      for i, unit in enumerate(units)
    ]
    parts.update(_run(_copy_unit, jobs, workers, bar))

  counts = {split: sum(part[split][2] for part in parts.values() if split in part) for split in members}
  _write_metadata(dataset, templates, [parts[i] for i in range(len(units))], members)
  for split in members:  # what packing needs to know without reading all records
    lengths = [array for i in range(len(units)) if split in parts[i] for array in parts[i][split][3]]
    np.save(dataset / lengths_file(split), np.concatenate(lengths))
  shutil.copy(spm, dataset / pathlib.Path(spm).name)
  tally = sum((collections.Counter(json.loads(str(t["tally"]))) for t in tables), collections.Counter())
  special = [tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]
  description = identity | {
    "input": {"documents": len(is_kept), "duplicate_documents": _duplicates(corpus), **dict(sorted(tally.items()))},
    "splits": {
      split: _split_counts(corpus, np.concatenate(masks), [part[split][0] for part in parts.values() if split in part])
      for split, masks in members.items()
    },
    "baselines": baselines(counts["train"], counts["validation"], special) if "validation" in counts else {},
    "files": {path.name: path.stat().st_size for path in sorted(dataset.iterdir())},
  }
  (dataset / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n")
  if out.exists():
    shutil.rmtree(out)
  dataset.rename(out)
  shutil.rmtree(partial)
  return description


def _continue_or_begin(partial, identity):
  """Keeps the units of an earlier run that was killed if they are of the same data; makes the folder otherwise."""
  text = json.dumps(identity, sort_keys=True)
  mark = partial / "identity.json"
  if not mark.exists() or mark.read_text() != text:
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "units").mkdir(parents=True)
    mark.write_text(text)


def _load_table(path):
  with np.load(path) as table:
    return dict(table)


def _duplicates(corpus):
  documents = corpus["document"][corpus["tokens"] > 0]
  return len(documents) - len(np.unique(documents))


def _check_corpus(corpus, pairs, spec, settings, mlm_only):
  found = f"--input={spec} has {len(corpus['document'])} documents, {int(corpus['sentences'].sum())} sentences"
  distinct = len(np.unique(corpus["document"][corpus["tokens"] > 0]))
  if not distinct:
    raise UserError(f"{found} and no tokens at all; expected text, a blank line between documents")
  if settings.validation_fraction and distinct < 2:
    raise UserError(
      f"{found}, all in one document, which cannot be both trained on and held out; separate documents with blank "
      "lines, or add --validation_fraction=0"
    )
  if not pairs and not mlm_only:
    raise UserError(
      f"{found}, but no document has two sentences, so there is no pair to put in order; expected several paragraphs "
      "or sentences in each document and a blank line between documents (see --layout); add --mlm_only if this is meant"
    )


def _name_shards(dataset, members):
  """TFDS' names: (templates {split: template}, for each unit {split: path} of the splits it has records for)."""
  import tensorflow_datasets as tfds

  templates = {
    split: tfds.core.ShardedFileTemplate(
      dataset_name=NAME, split=split, filetype_suffix="array_record", data_dir=os.fspath(dataset)
    )
    for split in members
  }
  shards = [{} for _ in next(iter(members.values()))]
  for split, masks in members.items():
    owners = [i for i, mask in enumerate(masks) if mask.any()]
    for shard, i in enumerate(owners):
      shards[i][split] = str(templates[split].sharded_filepath(shard_index=shard, num_shards=len(owners)))
  return templates, shards


def _write_metadata(dataset, templates, parts, members):
  import tensorflow_datasets as tfds

  infos = [
    tfds.core.SplitInfo(
      name=split,
      shard_lengths=[part[split][0] for part in parts if split in part],
      num_bytes=sum(part[split][1] for part in parts if split in part),
      filename_template=templates[split],
    )
    for split in members
  ]
  features = tfds.features.FeaturesDict({"record": tfds.features.Tensor(shape=(), dtype=np.object_)})
  tfds.folder_dataset.write_metadata(
    data_dir=os.fspath(dataset), features=features, split_infos=infos, check_data=False
  )


def _split_counts(corpus, mask, segments):
  tokens = int(corpus["tokens"][mask].sum())
  return {
    "documents": int(mask.sum()),
    "segments": int(sum(segments)),
    "sentences": int(corpus["sentences"][mask].sum()),
    "tokens": tokens,
    "unknown_rate": float(corpus["unknown"][mask].sum() / max(1, tokens)),
  }


def main(argv):
  """The command; see `albert-jax prepare --help`."""
  parser = argparse.ArgumentParser(
    prog="albert-jax prepare",
    description="Turns a corpus into a TFDS dataset of token segments, from which examples are made while training.",
    epilog="example: albert-jax prepare --input='corpus/*.txt' --spm=vocab/spiece.model --out=data/corpus",
  )
  readers.add_arguments(parser)
  parser.add_argument("--spm", required=True, help="the vocabulary: spiece.model, or vocab.txt (WordPiece)")
  parser.add_argument("--out", required=True, help="the folder to make")
  parser.add_argument("--segment_tokens", type=int, default=512, help="the longest length to train at (default: 512)")
  parser.add_argument(
    "--sentences", choices=("split", "line"), default="split", help="split lines into sentences, or take each as one"
  )
  parser.add_argument("--lower", action=argparse.BooleanOptionalAction, default=True, help="lower-case (default)")
  parser.add_argument("--keep_accents", action=argparse.BooleanOptionalAction, default=False, help="keep accents")
  parser.add_argument(
    "--validation_fraction", type=float, default=0.05, help="the share of documents to hold out (default: 0.05)"
  )
  parser.add_argument(
    "--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: all cores)"
  )
  parser.add_argument("--overwrite", action="store_true", help="replace the folder if it is there")
  parser.add_argument("--mlm_only", action="store_true", help="accept a corpus in which no document has two sentences")
  args = parser.parse_args(argv)
  settings = Settings(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Settings)})
  description = prepare(
    args.input,
    args.spm,
    args.out,
    settings,
    readers.from_arguments(args),
    workers=args.workers,
    overwrite=args.overwrite,
    mlm_only=args.mlm_only,
  )
  print(json.dumps({key: description[key] for key in ("input", "splits", "baselines")}, indent=2))
  print(f"made {args.out}")
  return 0
