"""`albert-jax vocab`: a SentencePiece vocabulary by the recipe of the original (its README's spm_train call)."""

import random

import sentencepiece
import tqdm

from albert_jax.data.corpus import readers
from albert_jax.data.corpus.sentences import split_sentences
from albert_jax.data.tokenizer import normalize
from albert_jax.errors import UserError

CONTROL_SYMBOLS = ("[CLS]", "[SEP]", "[MASK]")  # ids 2, 3, 4, after <pad> 0 and <unk> 1
USER_DEFINED_SYMBOLS = ("(", ")", '"', "-", ".", "–", "£", "€")
_SAMPLE = 2000  # sentences for the report


def train_vocabulary(sentences, *, vocab_size, character_coverage=0.99995, input_sentence_size=10_000_000):
  """Trains a unigram vocabulary.

  Args:
    sentences: iterable of str, already normalised as the tokenizer will (see tokenizer.normalize).
    vocab_size: int, all special pieces included.
    character_coverage: the share of the corpus' characters that get a piece; the rest is unknown.
    input_sentence_size: more sentences than these are sampled, which bounds the memory.

  Returns:
    bytes, a SentencePiece model.

  Raises:
    UserError: the corpus is too small or too varied for this size.
  """
  model = _Writer()
  try:
    sentencepiece.set_random_generator_seed(0)
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(sentences),
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
    reason = " ".join(str(error).split()).rsplit("] ", 1)[-1]
    raise UserError(
      f"--vocab_size={vocab_size} does not suit this corpus: {reason} (more text allows more pieces; fewer distinct "
      "characters need fewer)"
    ) from None
  return bytes(model.data)


class _Writer:
  """What SentencePiece wants to write its model to."""

  def __init__(self):
    self.data = b""

  def write(self, data):
    self.data += data


def sentences_of(units, reading, *, lower, keep_accents, sample, tally):
  """The normalised sentences of a corpus, with a progress bar; fills `sample` with a few, evenly chosen."""
  chosen = random.Random(0)
  seen = 0
  with tqdm.tqdm(total=sum(u.size for u in units), unit="B", unit_scale=True, desc="read", mininterval=0.5) as bar:
    for unit in units:
      for lines in readers.documents(unit, reading, tally):
        for line in lines:
          for sentence in split_sentences(line):
            text = normalize(sentence, lower=lower, keep_accents=keep_accents)
            if text:
              seen += 1
              place = len(sample) if len(sample) < _SAMPLE else chosen.randrange(seen)
              if place < _SAMPLE:
                sample[place : place + 1] = [text]
              yield text
      bar.update(unit.size)
  tally["sentences"] = seen


def report(tokenizer, sample):
  """How a vocabulary splits some sentences: dict with `pieces_per_word`, `unknown_rate`, `examples`."""
  encoded = tokenizer.encode_batch(sample)
  pieces = sum(map(len, encoded))
  unknown = sum(ids.count(tokenizer.unk_id) for ids in encoded)
  return {
    "pieces_per_word": pieces / max(1, sum(len(text.split()) for text in sample)),
    "unknown_rate": unknown / max(1, pieces),
    "examples": [" ".join(tokenizer.pieces[i] for i in ids)[:200] for ids in encoded[:3]],
  }
