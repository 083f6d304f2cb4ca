"""Entities in tags, and how many were found: precision, recall and F1 as conlleval and `seqeval` define them."""

from collections import Counter

from albert_jax.data.finetuning.tagged import parts


def entities(tags):
  """The entities of a sentence, as `seqeval` finds them in its default mode.

  An entity begins at B- or S-, and also where I- or E- follows O, another type, or an entity that has ended. It goes on
  over I- and E- of its type. So a wrong beginning is forgiven, as in conlleval. Bare names are read as I-.

  Args: tags: list of str.
  Returns: list of (type, begin, end), `end` being after the last word.
  """
  found, begin, before = [], 0, ("O", "")
  for i, now in enumerate([*map(parts, tags), ("O", "")]):
    starts = now[0] != "O" and (now[0] in "BS" or before[0] in "OES" or now[1] != before[1])
    if before[0] != "O" and (starts or now[0] == "O"):
      found.append((before[1], begin, i))
    if starts:
      begin = i
    before = now
  return found


def scores(gold, predicted):
  """Numbers of a tagged split, an entity being right if its words and its type are.

  Args: gold, predicted: lists of sentences, each a list of as many tags.
  Returns: {"precision", "recall", "f1" over all entities, "token_accuracy", and "f1_TYPE", … for each type}; 0 where
    nothing was there to find.
  """
  right, found, wanted = Counter(), Counter(), Counter()
  tokens = hits = 0
  for gold_tags, predicted_tags in zip(gold, predicted, strict=True):
    gold_entities, predicted_entities = set(entities(gold_tags)), set(entities(predicted_tags))
    for counter, some in (
      (right, gold_entities & predicted_entities),
      (found, predicted_entities),
      (wanted, gold_entities),
    ):
      counter.update(entity[0] for entity in some)
    tokens += len(gold_tags)
    hits += sum(a == b for a, b in zip(gold_tags, predicted_tags, strict=True))
  result = _ratios(right.total(), found.total(), wanted.total())
  result["token_accuracy"] = hits / max(tokens, 1)
  for name in sorted({*found, *wanted}):
    result |= {f"{key}_{name}": value for key, value in _ratios(right[name], found[name], wanted[name]).items()}
  return result


def _ratios(right, found, wanted):
  precision, recall = right / max(found, 1), right / max(wanted, 1)
  return {"precision": precision, "recall": recall, "f1": 2 * right / max(found + wanted, 1)}
