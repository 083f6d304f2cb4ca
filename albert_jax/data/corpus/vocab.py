"""`albert-jax vocab`: a SentencePiece vocabulary by the recipe of the original (its README's spm_train call)."""

import collections
import contextlib
import itertools
import logging
import os
import random
import threading
from collections.abc import Generator, Iterable
from typing import Any

import sentencepiece
import tqdm

from albert_jax import files
from albert_jax.data.corpus import marks, readers, work_units
from albert_jax.data.corpus.sentences import split_sentences
from albert_jax.data.tokenizer import RULES_FILE, Tokenizer, normalize, rules_file
from albert_jax.errors import UserError

logger = logging.getLogger(__name__)

CONTROL_SYMBOLS = ("[CLS]", "[SEP]", "[MASK]")  # ids 2, 3, 4, after <pad> 0 and <unk> 1
USER_DEFINED_SYMBOLS = ("(", ")", '"', "-", ".", "–", "£", "€")
MAX_SENTENCE_BYTES = 4192  # SentencePiece leaves out what is longer
# The values that SentencePiece takes, both ends included.
LIMITS = {"vocab_size": (8, 1 << 24), "character_coverage": (0.98, 1.0), "input_sentence_size": (101, 2**31 - 1)}
_RESERVED = "▅"  # SentencePiece leaves out sentences that hold this, its sign for an unknown character
_SAMPLE = 2000  # sentences for the report


def train_vocabulary(
  spec: str,
  out: str | os.PathLike,
  *,
  vocab_size: int = 30_000,
  lower: bool = True,
  keep_accents: bool | None = None,
  character_coverage: float = 0.99995,
  input_sentence_size: int = 10_000_000,
  reading: work_units.Reading | None = None,
  overwrite: bool = False,
) -> dict[str, Any]:
  """Trains a vocabulary on a corpus and writes `out/spiece.model`, with its rules beside it.

  Args:
    spec: the corpus, see `work_units.plan`.
    out: the folder to write to, on this machine or in a store.
    vocab_size: pieces, special ones included.
    lower: lower-case the text.
    keep_accents: keep combining marks; None decides by what the corpus would lose, see `marks.keep_accents`.
    character_coverage: see `train_model`.
    input_sentence_size: see `train_model`.
    reading: how to read the corpus.
    overwrite: replace a vocabulary that is there.

  Returns:
    A report: `input` (counts), `vocab_size`, `lower`, `keep_accents`, `marks` (the share of words with a mark that
    dropping loses), `pieces_per_word`, `unknown_rate` and `examples`.

  Raises:
    UserError: the corpus cannot be read or does not suit the size, or it is not clear whether marks are to be kept.
  """
  values = {
    "vocab_size": vocab_size, "character_coverage": character_coverage, "input_sentence_size": input_sentence_size
  }  # fmt: skip
  for name, (low, high) in LIMITS.items():
    if not low <= values[name] <= high:
      raise UserError(f"--{name}={values[name]} is out of range; expected {low:,} to {high:,}")
  out = files.user_path(out, "--out").rstrip("/")
  path = f"{out}/spiece.model"
  if files.exists(path) and not overwrite:
    raise UserError(f"{path} is already there; choose another --out, or add --overwrite to replace it")
  files.check_writable(path)
  reading = reading or work_units.Reading()
  units = work_units.plan(spec, reading)
  lost = marks.measure_corpus(units, reading)
  if keep_accents is None:
    keep_accents = marks.keep_accents(lost)
    if lost.examples:
      logger.info(
        "accents and other marks are %s: without them %.1f %% of the words change, such as %s",
        "kept (--no-keep_accents drops them)" if keep_accents else "dropped (--keep_accents keeps them)",
        100 * (lost.latin_share + lost.other_share),
        ", ".join(lost.examples[:3]),
      )
  sample, tally = [], collections.Counter()
  sentences = sentences_of(units, reading, lower=lower, keep_accents=keep_accents, sample=sample, tally=tally)
  with contextlib.closing(sentences):  # After an error its bar ends before the error's line.
    if (first := next(sentences, None)) is None:
      raise readers.no_text(spec, tally)
    model = train_model(
      itertools.chain([first], sentences),
      vocab_size=vocab_size,
      character_coverage=character_coverage,
      input_sentence_size=input_sentence_size,
    )
  # The rules first: a vocabulary without its rules would be read by the wrong ones.
  files.write_all({f"{out}/{RULES_FILE}": rules_file(lower, keep_accents), path: model})
  tokenizer = Tokenizer(path)
  return {
    "input": dict(sorted(tally.items())),
    "vocab_size": tokenizer.vocab_size,
    "lower": lower,
    "keep_accents": keep_accents,
    "marks": {"latin_share": lost.latin_share, "other_share": lost.other_share, "examples": lost.examples},
    **report(tokenizer, sample),
  }


def train_model(
  sentences: Iterable[str],
  *,
  vocab_size: int,
  character_coverage: float = 0.99995,
  input_sentence_size: int = 10_000_000,
) -> bytes:
  """Trains a unigram vocabulary.

  Args:
    sentences: already normalised as the tokenizer will (see tokenizer.normalize), each at most MAX_SENTENCE_BYTES.
    vocab_size: pieces, special ones included.
    character_coverage: the share of the corpus' characters that get a piece; the rest is unknown.
    input_sentence_size: more sentences than these are sampled, which bounds the memory.

  Returns:
    A SentencePiece model.

  Raises:
    UserError: the corpus is too small or too varied for this size.
  """
  model = _Writer()
  errors = []
  clock = _Clock("train the vocabulary")

  def stream():
    try:
      yield from sentences
    except BaseException as error:  # SentencePiece would report it as an error of its own.
      errors.append(error)
      raise
    clock.start()

  try:
    sentencepiece.set_random_generator_seed(0)
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=stream(),
      model_writer=model,
      model_type="unigram",
      vocab_size=vocab_size,
      pad_id=0,
      unk_id=1,
      bos_id=-1,
      eos_id=-1,
      control_symbols=list(CONTROL_SYMBOLS),
      user_defined_symbols=list(USER_DEFINED_SYMBOLS),
      character_coverage=character_coverage,
      input_sentence_size=input_sentence_size,
      shuffle_input_sentence=True,
      # The text comes normalised, and so does what the tokenizer feeds it later: nothing is normalised twice.
      normalization_rule_name="identity",
      num_threads=16,  # the number of threads changes the last bits of sums, so it does not depend on the machine
      minloglevel=2,
    )
  except (RuntimeError, OSError) as error:
    if errors:
      raise errors[0] from None
    reason = " ".join(str(error).split()).rsplit("] ", 1)[-1]
    raise UserError(
      f"--vocab_size={vocab_size} does not suit this corpus: {reason} (more text allows more pieces; fewer distinct "
      "characters need fewer)"
    ) from None
  finally:
    clock.stop()
  if errors:
    raise errors[0]
  return bytes(model.data)


class _Writer:
  """The file-like object that SentencePiece writes its model to."""

  def __init__(self):
    self.data = b""

  def write(self, data):
    self.data += data


class _Clock:
  """Shows every second how long a task has run, from a thread: SentencePiece says nothing while it trains."""

  def __init__(self, title):
    self._title = title
    self._is_over = threading.Event()
    self._thread = threading.Thread(target=self._show, daemon=True)

  def _show(self):
    with tqdm.tqdm(desc=self._title, bar_format="{desc}: {elapsed}") as bar:
      while not self._is_over.wait(1):
        bar.refresh()

  def start(self):
    self._thread.start()

  def stop(self):
    self._is_over.set()
    if self._thread.ident is not None:
      self._thread.join()


def sentences_of(
  units: list[work_units.Unit],
  reading: work_units.Reading,
  *,
  lower: bool,
  keep_accents: bool,
  sample: list[str],
  tally: collections.Counter,
) -> Generator[str, None, None]:
  """Yields the normalised sentences of a corpus, none longer than SentencePiece reads, with a progress bar.

  Args:
    units: the corpus, from `work_units.plan`.
    reading: how to read it.
    lower: see tokenizer.normalize.
    keep_accents: see tokenizer.normalize.
    sample: filled with a few of the sentences, evenly chosen.
    tally: counts of what was read, cut and wrong; added to.
  """
  chosen = random.Random(0)
  seen = 0
  with tqdm.tqdm(total=sum(u.size for u in units), unit="B", unit_scale=True, desc="read", mininterval=0.5) as bar:
    for unit in units:
      for lines in readers.documents(unit, reading, tally):
        for sentence in (sentence for line in lines for sentence in split_sentences(line)):
          text = normalize(sentence, lower=lower, keep_accents=keep_accents)
          if _RESERVED in text:
            text = " ".join(text.replace(_RESERVED, " ").split())
            tally[f"sentences with {_RESERVED}, which is left out"] += 1
          if not text:
            continue
          seen += 1
          place = len(sample) if len(sample) < _SAMPLE else chosen.randrange(seen)
          if place < _SAMPLE:
            sample[place : place + 1] = [text]
          parts = cut(text, MAX_SENTENCE_BYTES)
          tally["long sentences cut"] += len(parts) > 1
          yield from parts
      bar.update(unit.size)
  tally["sentences"] = seen


def cut(text: str, limit: int) -> list[str]:
  """Cuts a text into parts of at most `limit` bytes of UTF-8, after white space if possible, never inside a character.

  Args:
    text: with single spaces between words.
    limit: at least 8.

  Returns:
    The parts without outer white space; joined, they hold all visible characters.
  """
  if 4 * len(text) <= limit:
    return [text]
  data = text.encode("utf-8", "surrogatepass")
  parts = []
  while len(data) > limit:
    end = data.rfind(b" ", 1, limit + 1)
    if end < 0:
      end = limit
      while data[end] & 0xC0 == 0x80:
        end -= 1
    parts.append(data[:end].decode("utf-8", "surrogatepass"))
    data = data[end:].lstrip(b" ")
  return [*parts, data.decode("utf-8", "surrogatepass")] if data else parts


def report(tokenizer: Tokenizer, sample: list[str]) -> dict[str, Any]:
  """Returns how a vocabulary splits some sentences: dict with `pieces_per_word`, `unknown_rate`, `examples`."""
  encoded = tokenizer.encode_batch(sample)
  pieces = sum(map(len, encoded))
  unknown = sum(ids.count(tokenizer.unk_id) for ids in encoded)
  return {
    "pieces_per_word": pieces / max(1, sum(len(text.split()) for text in sample)),
    "unknown_rate": unknown / max(1, pieces),
    "examples": [" ".join(tokenizer.pieces[i] for i in ids)[:200] for ids in encoded[:3]],
  }
