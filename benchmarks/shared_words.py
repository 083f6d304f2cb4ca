"""Makes a tagging dataset from pairs of sentences: which words of a sentence does the other one have too?

  ALBERT_DATA=DIR python benchmarks/shared_words.py OUT
  albert-jax train --config=ner:base --config.init_from=CHECKPOINT --config.data.dataset=OUT --workdir=RUN

A small model that starts from this task learns STS-B and MRPC, whose few labels do not teach it to compare words.
Pairs are those of the MNLI, SNLI and QQP subsets and of the training splits of STS-B and MRPC; their labels are not
used. A row is the words of both sentences with `|` between; those of both are B-SAME, whatever their case.
"""

import argparse
import json
import os
import pathlib
import random
import re
from collections.abc import Iterable, Iterator

SUBSETS = ("MNLI", "SNLI", "QQP")
GLUE = {"STS-B": ("sentence1", "sentence2"), "MRPC": ("#1 String", "#2 String")}  # columns
WORD = re.compile(r"\w+|[^\w\s]")
MOST_WORDS = 44  # of a pair
HELD_OUT = 400  # pairs


def pairs(data: pathlib.Path) -> list[tuple[str, str]]:
  """Returns all pairs of sentences, shuffled."""
  result = []
  for name in SUBSETS:
    rows = json.loads((data / "glue_subsets" / name / "train.json").read_text("utf-8"))
    result += [(row["text_a"], row["text_b"]) for row in rows.values()]
  for name, columns in GLUE.items():
    lines = (data / "glue" / name / "train.tsv").read_text("utf-8-sig").split("\n")
    header, *rows = [line.split("\t") for line in lines]
    first, second = map(header.index, columns)
    result += [(row[first], row[second]) for row in rows if len(row) == len(header)]
  random.Random(0).shuffle(result)
  return result


def tagged(sentences: Iterable[tuple[str, str]]) -> Iterator[str]:
  """Yields each pair as lines of a word and its tag."""
  for texts in sentences:
    first, second = map(WORD.findall, texts)
    if not first or not second or len(first) + len(second) > MOST_WORDS:
      continue
    in_both = {word.lower() for word in first} & {word.lower() for word in second}
    row = [*first, "|", *second]
    tags = ["B-SAME" if i != len(first) and word.lower() in in_both else "O" for i, word in enumerate(row)]
    yield "".join(f"{word}\t{tag}\n" for word, tag in zip(row, tags, strict=True)) + "\n"


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("out", help="the new folder")
  out, sentences = pathlib.Path(parser.parse_args().out), pairs(pathlib.Path(os.environ["ALBERT_DATA"]))
  out.mkdir(parents=True)
  (out / "dev.txt").write_text("".join(tagged(sentences[:HELD_OUT])), "utf-8")
  (out / "train.txt").write_text("".join(tagged(sentences[HELD_OUT:])), "utf-8")


if __name__ == "__main__":
  main()
