"""Documents that nearly repeat another."""

import made_up
import numpy as np
import pytest

from albert_jax.data.corpus import near_duplicates, prepare, segments, work_units
from albert_jax.errors import UserError


def jaccard(a, b):
  sets = [{tuple(x[i : i + near_duplicates.RUN]) for i in range(len(x) - near_duplicates.RUN + 1)} for x in (a, b)]
  return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@pytest.mark.parametrize("changes", [0, 3, 10, 40])
def test_sketches_tell_the_similarity(changes):
  random = np.random.default_rng(changes)
  a = random.integers(0, 30000, 1000)
  b = a.copy()
  b[random.choice(1000, changes, replace=False)] = 7
  sketches = [near_duplicates.sketch(x)[None] for x in (a, b)]
  assert near_duplicates.similarity(*sketches)[0] == pytest.approx(jaccard(a.tolist(), b.tolist()), abs=0.15)


def test_short_documents_have_sketches_too():
  for size in (0, 1, 4, 5, 6):
    sketch = near_duplicates.sketch(np.arange(size))
    assert sketch.shape == (near_duplicates.SKETCH,) and near_duplicates.similarity(sketch[None], sketch[None])[0] in (
      0,
      1,
    )


def test_repetitions_are_found_and_nothing_else():
  random = np.random.default_rng(0)
  documents = [random.integers(0, 5000, random.integers(50, 800)) for _ in range(500)]
  near = []
  for i in range(0, 500, 10):
    copy = documents[i].copy()
    copy[len(copy) // 2] = 9999
    near.append(copy)
  sketches = np.stack([near_duplicates.sketch(x) for x in [*documents, *near]])
  is_duplicate = near_duplicates.find(sketches, np.ones(len(sketches), bool), 0.7)
  assert not is_duplicate[:500].any() and is_duplicate[500:].mean() > 0.95


def test_prepare_drops_them_on_request(tmp_path):
  docs = made_up.documents(30, sentences=(30, 40))
  changed = [[*lines[:-1], "A new end."] for lines in docs[:6]]
  corpus = made_up.write(tmp_path / "a.txt", [*docs, *changed])
  spm = made_up.vocabulary(tmp_path)

  def make(name, threshold):
    settings = segments.Settings(sentences="line", near_duplicates=threshold)
    return prepare.prepare(str(corpus), spm, tmp_path / name, settings, work_units.Reading(layout="blank"))

  assert make("all", 0.0)["input"]["near_duplicate_documents"] == 0
  description = make("fewer", 0.8)
  assert description["input"]["near_duplicate_documents"] == 6
  assert sum(split["documents"] for split in description["splits"].values()) == 30
  with pytest.raises(UserError, match="--near_duplicates=2"):
    make("wrong", 2.0)
