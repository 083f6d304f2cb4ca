"""Makes a table of 400 labelled rows, and 500 held-out ones, of SST-2: what a first fine-tuning run of one's own sees.

  ALBERT_DATA=DIR python benchmarks/small_table.py --out=films

Rows have eight words or more, one of which is a word of praise or blame, and no two share five words in a row, because
SST-2's rows are phrases of the same sentences. Prints the accuracy of the most frequent label and of naive Bayes.
"""

import argparse
import collections
import csv
import math
import os
import pathlib
import random

PRAISE = """good great best funny moving beautiful love enjoyable fun brilliant charming wonderful excellent delightful
fresh touching clever powerful engaging smart"""
BLAME = """bad worst dull boring stupid awful fails lacks mess tedious terrible poor flat silly unfunny pointless ugly
lame annoying waste"""
SIZES = {"train": 400, "dev": 500}


def rows(data):
  """Returns (text, label) of the chosen rows, shuffled."""
  lines = (data / "glue" / "SST-2" / "train.tsv").read_text("utf-8").splitlines()[1:]
  opinion, chosen, seen = {*PRAISE.split(), *BLAME.split()}, [], set()
  candidates = [line.split("\t") for line in lines]
  candidates = [(text.strip(), label) for text, label in candidates if len(text.split()) >= 8]
  candidates = [(text, label) for text, label in candidates if opinion & {*text.split()}]
  random.Random(0).shuffle(candidates)
  for text, label in candidates:
    words = text.split()
    runs = {tuple(words[i : i + 5]) for i in range(len(words) - 4)}
    if not runs & seen:
      seen |= runs
      chosen.append((text, ("negative", "positive")[int(label)]))
  return chosen


def naive_bayes(train, held_out):
  """Returns the accuracy of naive Bayes on the words of a text."""
  number = collections.Counter(label for _, label in train)
  counts = {label: collections.Counter() for label in number}
  for text, label in train:
    counts[label].update({*text.split()})

  def score(text, label):
    words = {*text.split()}
    return math.log(number[label]) + sum(math.log((counts[label][w] + 1) / (number[label] + 2)) for w in words)

  return sum(max(number, key=lambda label: score(text, label)) == gold for text, gold in held_out) / len(held_out)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR")
  args = parser.parse_args()
  chosen, parts = rows(pathlib.Path(os.environ["ALBERT_DATA"])), {}
  args.out.mkdir(parents=True, exist_ok=True)
  for name, size in SIZES.items():
    parts[name], chosen = chosen[:size], chosen[size:]
    with (args.out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
      csv.writer(file).writerows([("text", "label"), *parts[name]])
  most = max(collections.Counter(label for _, label in parts["dev"]).values()) / SIZES["dev"]
  print(f"most frequent label: {most:.3f}; naive Bayes: {naive_bayes(parts['train'], parts['dev']):.3f}")


if __name__ == "__main__":
  main()
