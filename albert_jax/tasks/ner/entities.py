"""Scores entities in tags: precision, recall and F1 as defined by conlleval and `seqeval`.

Written here because `seqeval` needs scikit-learn, and is slower; a test shows that the numbers are equal.
"""

from collections import Counter

from albert_jax.data.finetuning.tagged import parts


def entities(tags: list[str]) -> list[tuple[str, int, int]]:
  """Finds the entities of a sentence, as `seqeval` does in its default mode.

  An entity begins at B- or S-, and also where I- or E- follows O, another type, or an entity that has ended. It goes on
  over I- and E- of its type. So a wrong beginning is forgiven, as in conlleval. Bare names are read as I-.

  Args:
    tags: a tag for each word.

  Returns:
    for each entity its type, the number of its first word, and that after its last word.
  """
  spans, begin, before = [], 0, ("O", "")
  for i, tag in enumerate([*map(parts, tags), ("O", "")]):
    starts = tag[0] != "O" and (tag[0] in "BS" or before[0] in "OES" or tag[1] != before[1])
    if before[0] != "O" and (starts or tag[0] == "O"):
      spans.append((before[1], begin, i))
    if starts:
      begin = i
    before = tag
  return spans


def scores(gold: list[list[str]], predicted: list[list[str]]) -> dict[str, float]:
  """Scores the tags of a split. An entity is right if its words and its type are.

  Args:
    gold: for each sentence its tags.
    predicted: likewise, as many.

  Returns:
    {"precision", "recall", "f1" over all entities, "token_accuracy", and "f1_TYPE", … for each type}; 0 where nothing
    was there to find.
  """
  right: Counter = Counter()
  proposed: Counter = Counter()
  existing: Counter = Counter()
  tokens = hits = 0
  for gold_tags, predicted_tags in zip(gold, predicted, strict=True):
    gold_entities, predicted_entities = set(entities(gold_tags)), set(entities(predicted_tags))
    right.update(kind for kind, _, _ in gold_entities & predicted_entities)
    proposed.update(kind for kind, _, _ in predicted_entities)
    existing.update(kind for kind, _, _ in gold_entities)
    tokens += len(gold_tags)
    hits += sum(a == b for a, b in zip(gold_tags, predicted_tags, strict=True))
  result = _ratios(right.total(), proposed.total(), existing.total())
  result["token_accuracy"] = hits / max(tokens, 1)
  for kind in sorted({*proposed, *existing}):
    numbers = _ratios(right[kind], proposed[kind], existing[kind])
    result |= {f"{name}_{kind}": value for name, value in numbers.items()}
  return result


def _ratios(right, proposed, existing):
  precision, recall = right / max(proposed, 1), right / max(existing, 1)
  return {"precision": precision, "recall": recall, "f1": 2 * right / max(proposed + existing, 1)}
