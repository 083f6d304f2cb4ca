"""Makes a `tokenizer.json` with which transformers tokenizes as we do.

Given only a spiece.model, transformers 5 treats the pieces `(`, `-`, `.` and so on as added tokens and starts a new
word after each: most sentences are tokenized differently from training (docs/tokenizer.md).
"""

import base64
import pathlib
import sys
import unicodedata
from typing import Any

from albert_jax.convert.protobuf import parse
from albert_jax.data.tokenizer import Tokenizer

# The original splits these pieces again, so their scores are set too low to be used: 1 line of 6300 differs.
_PENALTY = 100.0


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any] | None:
  """Returns the object of a tokenizer.json for a `Tokenizer` with a SentencePiece unigram model, or None for others."""
  sp = tokenizer._model
  proto = parse(pathlib.Path(tokenizer.path).read_bytes())
  trainer, normalizer = (parse(proto.get(number, [b""])[-1]) for number in (2, 3))
  if trainer.get(3, [1])[-1] != 1:
    return None  # not a unigram model
  ids = {"pad": tokenizer.pad_id, "unk": tokenizer.unk_id, "cls": tokenizer.cls_id, "sep": tokenizer.sep_id,
         "mask": tokenizer.mask_id}  # fmt: skip
  names = {key: tokenizer.pieces[i] for key, i in ids.items()}

  steps = [_replace(r"[\s\x1c-\x1f\x85]+", " "), {"type": "Strip", "strip_left": True, "strip_right": True}]
  if tokenizer.hf_quotes:
    steps += [_replace("``|''", '"')]
  steps += [{"type": "NFKD"}]
  if not tokenizer.keep_accents:
    steps += [_replace(_combining(), "")]
  if tokenizer.lower:
    steps += [{"type": "Lowercase"}]
  if charsmap := normalizer.get(2, [b""])[-1]:
    steps += [{"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}]
  steps += [_replace(" {2,}", " "), {"type": "Strip", "strip_left": True, "strip_right": True}]

  avoided = tokenizer._resplit
  vocabulary = [
    [piece, 0.0 if i in ids.values() else sp.get_score(i) - (_PENALTY if i in avoided else 0.0)]
    for i, piece in enumerate(tokenizer.pieces)
  ]
  words = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
  single = [_symbol(names["cls"], 0), _text("A", 0), _symbol(names["sep"], 0)]
  return {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
      {
        "id": ids[key],
        "content": names[key],
        "single_word": False,
        "lstrip": key == "mask",
        "rstrip": False,
        "normalized": False,
        "special": True,
      }
      for key in sorted(ids, key=lambda key: ids[key])
    ],
    "normalizer": {"type": "Sequence", "normalizers": steps},
    "pre_tokenizer": words,
    "post_processor": {
      "type": "TemplateProcessing",
      "single": single,
      "pair": [*single, _text("B", 1), _symbol(names["sep"], 1)],
      "special_tokens": {
        names[key]: {"id": names[key], "ids": [ids[key]], "tokens": [names[key]]} for key in ("cls", "sep")
      },
    },
    "decoder": words,
    "model": {"type": "Unigram", "unk_id": ids["unk"], "vocab": vocabulary, "byte_fallback": False},
  }


def _replace(pattern, content):
  return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _symbol(name, type_id):
  return {"SpecialToken": {"id": name, "type_id": type_id}}


def _text(name, type_id):
  return {"Sequence": {"id": name, "type_id": type_id}}


def _combining():
  """Returns a character class of the accents that the original drops; StripAccents drops more (Hindi vowel signs)."""
  marks = [i for i in range(sys.maxunicode + 1) if unicodedata.combining(chr(i))]
  ranges = []
  for i in marks:
    if ranges and ranges[-1][1] == i - 1:
      ranges[-1][1] = i
    else:
      ranges.append([i, i])
  return "[" + "".join(f"\\x{{{a:x}}}-\\x{{{b:x}}}" for a, b in ranges) + "]"
