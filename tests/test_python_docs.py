"""The corpus made of Python's own documentation."""

from albert_jax.data.corpus import opening, python_docs, work_units
from albert_jax.data.corpus.python_docs import docstrings, paragraphs, topics


def test_prose_is_kept_and_markup_is_not():
  text = """Summary line.

  Two lines of
  one paragraph.

  >>> print("a doctest")
  a doctest

  Heading
  =======

  x ::= ("(" y ","? ")" | [z]) ":" {w}
  """
  assert paragraphs(text) == ["Summary line.", "Two lines of one paragraph.", "Heading"]


def test_there_is_enough_text_in_a_fixed_order():
  documents = topics() + docstrings()
  names = [name for name, _ in documents]
  assert len(set(names)) == len(names) and "topic/with" in names and "module/argparse.py" in names
  assert not any("/test/" in name for name in names)
  size = sum(len(line) for _, lines in documents for line in lines)
  assert 1_000_000 < size < 10_000_000, f"{size} characters"
  assert all(lines and all(line == " ".join(line.split()) for line in lines) for _, lines in documents)


def test_tfds_builds_it_without_tensorflow(tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  monkeypatch.setattr(python_docs, "docstrings", lambda: [("module/a.py", ["One.", "Two."])])
  builder = tfds.builder("python_docs", data_dir=tmp_path, file_format="array_record")
  builder.download_and_prepare()
  texts = [example["text"] for example in builder.as_data_source("train")]
  assert len(texts) == len(topics()) + 1
  assert b"One.\nTwo." in texts


def test_reading_it_prints_nothing_on_standard_output(tmp_path, monkeypatch, capfd):
  monkeypatch.setattr(python_docs, "docstrings", lambda: [("module/a.py", ["One.", "Two."])])
  monkeypatch.setattr(python_docs, "topics", lambda: [])
  opening.tfds_source.cache_clear()
  assert work_units.plan("python_docs", work_units.Reading(tfds_dir=str(tmp_path)))
  opening.tfds_source.cache_clear()
  assert capfd.readouterr().out == ""
