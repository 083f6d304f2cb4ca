"""ROUGE: how much of a summary's words, pairs of words and word order is in a reference; `rouge-score`'s definitions.

Without stemming; ROUGE-L is of the whole text as one sequence (there rougeL, not rougeLsum). Only a-z and
0-9 make words, as in the original ROUGE, so it says nothing of other scripts.
"""

import re
from collections import Counter


def words(text):
  """The words of a text: runs of a-z and 0-9, lower-cased."""
  return re.findall("[a-z0-9]+", text.lower())


def scores(reference, summary) -> dict:
  """{"rouge1", "rouge2", "rougeL": F1} of two texts; 0 where either has no words."""
  reference, summary = words(reference), words(summary)
  found = {f"rouge{n}": _f1(ngrams(reference, n), ngrams(summary, n)) for n in (1, 2)}
  common = longest_common(reference, summary)
  return found | {"rougeL": 2 * common / max(len(reference) + len(summary), 1)}


def ngrams(tokens, n):
  """How often each run of `n` tokens occurs."""
  return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


def _f1(reference, summary):
  return 2 * (reference & summary).total() / max(reference.total() + summary.total(), 1)


def longest_common(a, b) -> int:
  """The length of the longest common subsequence, by the bits of one long number (Hyyrö, 2004)."""
  places = {}
  for i, token in enumerate(a):
    places[token] = places.get(token, 0) | 1 << i
  everything = (1 << len(a)) - 1
  row = everything
  for token in b:
    hits = row & places.get(token, 0)
    row = (row + hits | row - hits) & everything
  return len(a) - row.bit_count()


def oracle(sentences, reference, most):
  """The sentences that make the best summary one can see: the one that adds most ROUGE-1 + ROUGE-2, again and again.

  Nallapati et al. (2017), as in BertSum; pairs of words over the end of a sentence are not counted.
  Args: sentences: list of str. reference: str. most: how many at most.
  Returns: their indices, in the order of the text; fewer where another would make it worse, none where nothing matches.
  """
  wanted = [ngrams(words(reference), n) for n in (1, 2)]
  parts = [[ngrams(words(sentence), n) for n in (1, 2)] for sentence in sentences]
  chosen, best, so_far = [], 0.0, [Counter(), Counter()]
  while len(chosen) < min(most, len(sentences)):
    rest = [i for i in range(len(sentences)) if i not in chosen]
    sums = [sum(_f1(w, s + p) for w, s, p in zip(wanted, so_far, parts[i], strict=True)) for i in rest]
    if max(sums) <= best:
      break
    best = max(sums)
    chosen.append(rest[sums.index(best)])
    so_far = [s + p for s, p in zip(so_far, parts[chosen[-1]], strict=True)]
  return sorted(chosen)
