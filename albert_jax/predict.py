"""Texts to answers with a trained model; compiled once for each of a few lengths."""

import contextlib
import functools
import itertools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from albert_jax import cli, convert, model
from albert_jax.errors import UserError

LENGTHS = (32, 64, 128, 256, 512)  # A text is padded to the next of these, so that few programs are compiled.


def fill_mask(cfg, params, tokenizer, texts, *, top_k=5):
  """What the model would write at each `[MASK]` of each text.

  Args: texts: list of str, compiled and run as one batch, so give a few dozen at most.
  Returns: for each text {"text", "filled": the text with the best pieces in place, "masks": for each mask a list of
    top_k {"token", "score"}, best first; score is the probability among ordinary pieces}.
  Raises: UserError for a text without [MASK], or one that is longer than the model's positions.
  """
  if "mlm" not in params:
    raise UserError("this checkpoint has no MLM head, so it cannot fill masks; use one that was pre-trained with it")
  rows = [[tokenizer.cls_id, *tokenizer.encode(text, specials=True), tokenizer.sep_id] for text in texts]
  for text, row in zip(texts, rows, strict=True):
    if tokenizer.mask_id not in row:
      raise UserError(f"no [MASK] in {text!r}; write one where a word is to be filled in")
  batch = _padded(cfg, rows, tokenizer.pad_id)
  where = [np.flatnonzero(np.array(row) == tokenizer.mask_id) for row in rows]
  slots = 1 << (max(map(len, where)) - 1).bit_length()
  batch["mlm_positions"] = np.stack([np.pad(w, (0, slots - len(w))) for w in where]).astype(np.int32)

  ids, scores = jax.device_get(_best_pieces(cfg, top_k, params, batch, jnp.asarray(tokenizer.ordinary_ids)))
  results = []
  for i, (text, row) in enumerate(zip(texts, rows, strict=True)):
    masks = [
      [{"token": tokenizer.decode([k]), "score": float(p)} for k, p in zip(ids[i, m], scores[i, m], strict=True)]
      for m in range(len(where[i]))
    ]
    filled = np.array(row)
    filled[where[i]] = ids[i, : len(where[i]), 0]
    results.append({"text": text, "filled": tokenizer.decode(filled[1:-1]), "masks": masks})
  return results


@functools.partial(jax.jit, static_argnums=(0, 1))
def _best_pieces(cfg, top_k, params, batch, ordinary):
  logits_BMV = model.apply(cfg, params, batch)["mlm_logits"][:, :, ordinary]
  scores, best = jax.lax.top_k(jax.nn.softmax(logits_BMV), top_k)
  return ordinary[best], scores


def _padded(cfg, rows, pad_id):
  """Rows of ids as one batch [B, L] whose L is the next of LENGTHS."""
  longest = max(map(len, rows))
  fits = [length for length in LENGTHS if longest <= length <= cfg.max_position_embeddings]
  if not fits and longest > cfg.max_position_embeddings:
    raise UserError(f"a text has {longest} tokens, the model {cfg.max_position_embeddings} positions; shorten the text")
  length = fits[0] if fits else cfg.max_position_embeddings
  ids = np.full((len(rows), length), pad_id, np.int32)
  for i, row in enumerate(rows):
    ids[i, : len(row)] = row
  mask = np.arange(length)[None, :] < np.array([len(row) for row in rows])[:, None]
  return {"input_ids": ids, "attention_mask": mask.astype(np.int32), "token_type_ids": np.zeros_like(ids)}


def _texts(lines):
  """The texts of lines: plain, or JSON objects with a "text"."""
  for number, line in enumerate(lines, 1):
    line = line.rstrip("\n")
    if not line.strip():
      continue
    if line.lstrip().startswith("{"):
      try:
        line = json.loads(line)["text"]
      except (ValueError, KeyError) as error:
        raise UserError(f'line {number} is neither text nor a JSON object with a "text": {error}') from None
    yield line


TASKS = {"fill-mask": fill_mask}


def main(argv):
  parser = cli.parser(
    "predict",
    'Reads texts, a line each (or JSON objects with a "text"), and writes a JSON line for each.',
    'albert-jax predict --checkpoint=RUN/export --task=fill-mask "The [MASK] statement ends a loop."',
  )
  parser.add_argument("--checkpoint", required=True, metavar="DIR", help="a Hugging Face directory, as RUN/export")
  parser.add_argument("--task", required=True, choices=TASKS, help="what to do with each text")
  parser.add_argument("--input", metavar="FILE", help="read the texts there instead of from standard input")
  parser.add_argument("--batch_size", type=int, default=32, help="texts run together (default 32)")
  parser.add_argument("--top_k", type=int, default=5, help="answers for each mask (default 5)")
  parser.add_argument("texts", nargs="*", metavar="TEXT", help="texts, instead of a file")
  args = parser.parse_args(argv)
  cfg, params = convert.load(args.checkpoint)
  tokenizer = convert.load_tokenizer(args.checkpoint)
  params = jax.device_put(params)

  if args.input and not pathlib.Path(args.input).is_file():
    raise UserError(f"no file {args.input!r}; give a text file with a text a line")
  with contextlib.ExitStack() as stack:
    lines = stack.enter_context(open(args.input, encoding="utf-8")) if args.input else args.texts or sys.stdin
    texts = _texts(lines)
    while batch := list(itertools.islice(texts, args.batch_size)):
      for result in TASKS[args.task](cfg, params, tokenizer, batch, top_k=args.top_k):
        print(json.dumps(result, ensure_ascii=False), flush=True)
