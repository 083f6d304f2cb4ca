"""Files of a split: one way to find them for every task, and one way to read their text."""

import os

import pytest

from albert_jax.data.finetuning import splits
from albert_jax.errors import UserError

SUFFIXES = (".csv", ".tsv", ".json")


def make(folder, *names):
  folder.mkdir(exist_ok=True)
  for name in names:
    (folder / name).write_text("x")
  return folder


def names(paths):
  return [path.name for path in paths]


class TestFind:
  def test_the_file_with_the_name_of_the_split(self, tmp_path):
    make(tmp_path, "train.csv", "dev.tsv", "other.json", "train.md", ".train.tsv")
    assert splits.find(tmp_path, "train", SUFFIXES) == [tmp_path / "train.csv"]
    assert splits.find(tmp_path, "validation", SUFFIXES) == [tmp_path / "dev.tsv"]
    assert splits.find(tmp_path, "other", SUFFIXES) == [tmp_path / "other.json"]
    assert splits.find(tmp_path, "other.json", SUFFIXES) == [tmp_path / "other.json"]
    assert splits.find("nowhere", tmp_path / "dev.tsv", SUFFIXES) == [tmp_path / "dev.tsv"]
    assert splits.find(tmp_path / "train.csv", "train", SUFFIXES) == [tmp_path / "train.csv"]
    assert splits.find("glue/sst2", "train", SUFFIXES) is None  # for TFDS

  @pytest.mark.parametrize(
    "name", ["dev-v2.0.json", "cmrc2018_dev.json", "squad.dev.json", "devset.json", "corpus.testa", "DEV.json.csv"]
  )
  def test_the_file_whose_name_contains_that_of_the_split(self, name, tmp_path):
    make(tmp_path, name, "train.csv", "device.json", "undeveloped.csv")
    assert names(splits.find(tmp_path, "validation", SUFFIXES)) == [name]

  def test_several_names_and_patterns(self, tmp_path):
    make(tmp_path, "1.csv", "2.csv", "train.csv", "a,b.csv", "[1].csv")
    assert names(splits.find(tmp_path, "[1-9]*.csv", SUFFIXES)) == ["1.csv", "2.csv"]
    assert names(splits.find(tmp_path, "2.csv, train,2.csv", SUFFIXES)) == ["2.csv", "train.csv"]
    assert names(splits.find("", f"{tmp_path}/?.csv", SUFFIXES)) == ["1.csv", "2.csv"]
    # An existing file is no pattern and no list.
    assert names(splits.find(tmp_path, "[1].csv", SUFFIXES)) == ["[1].csv"]
    assert names(splits.find(tmp_path, "a,b.csv", SUFFIXES)) == ["a,b.csv"]
    odd = make(tmp_path / "[1]*", "train.tsv")
    assert splits.find(odd, "*.tsv", SUFFIXES) == [odd / "train.tsv"]

  def test_a_file_of_the_folder_comes_before_one_of_the_working_folder(self, tmp_path, monkeypatch):
    monkeypatch.chdir(make(tmp_path, "train.csv", "only.csv"))
    data = make(tmp_path / "data", "train.csv")
    assert splits.find(data, "train.csv", SUFFIXES) == [data / "train.csv"]
    assert splits.find(data, "only.csv", SUFFIXES)[0].name == "only.csv"

  def test_what_cannot_be_found_is_one_line_with_what_is_there(self, tmp_path):
    make(tmp_path, "train.csv", "train.tsv", "dev-1.json", "dev-2.json")
    for dataset, split, words in (
      (tmp_path, "train", r"several files of the split 'train': train\.csv, train\.tsv; name one"),
      (tmp_path, "validation", r"several files .*dev-1\.json, dev-2\.json"),
      (tmp_path, "test", r"no file of the split 'test': expected test, testb .*there is dev-1\.json.*split=FILE"),
      (tmp_path, "*.txt", r"no file of the split '\*\.txt'"),
      (tmp_path / "train.csv", "validation", "validation_fraction"),
      (tmp_path / "no.csv", "train", "there is no such file or folder"),
      (tmp_path / "no", "train", "there is no such file or folder"),
      ("", "train", "data.dataset is not set"),
      (tmp_path, "", "data.split or data.validation_split is not set"),
    ):
      with pytest.raises(UserError, match=words) as error:
        splits.find(dataset, split, SUFFIXES)
      assert "\n" not in str(error.value)

  def test_a_named_pipe_is_no_file(self, tmp_path):
    os.mkfifo(tmp_path / "train.csv")  # To open it would wait for ever.
    with pytest.raises(UserError, match="has no file of the split 'train'"):
      splits.find(tmp_path, "train", SUFFIXES)

  def test_only_the_file_names_of_an_official_dataset(self, tmp_path):
    make(tmp_path, "train.tsv", "msr_train.txt", "dev.csv")
    assert names(splits.find(tmp_path, "train", SUFFIXES, ("msr_train.txt",))) == ["msr_train.txt"]
    with pytest.raises(UserError, match=r"expected dev\.tsv, and there is dev\.csv"):
      splits.find(tmp_path, "validation", SUFFIXES, ("dev.tsv",))

  def test_shards_are_one_file(self, tmp_path):
    shards = [f"train-{i:05}-of-00003.csv" for i in range(3)]
    make(tmp_path, "README.md", *shards[::-1], "dev-00000-of-00001-0123456789abcdef.csv", "test-00000-of-00001.csv")
    (tmp_path / ".cache").mkdir()
    assert names(splits.find(tmp_path, "train", SUFFIXES)) == shards
    assert names(splits.find(tmp_path, "validation", SUFFIXES)) == ["dev-00000-of-00001-0123456789abcdef.csv"]
    assert names(splits.find(tmp_path, shards[1], SUFFIXES)) == [shards[1]]
    assert names(splits.find(tmp_path, "train-*", SUFFIXES)) == shards
    (tmp_path / shards[1]).unlink()
    with pytest.raises(UserError, match=r"has 2 of the 3 files of .*'train': train-00001-of-00003\.csv is missing"):
      splits.find(tmp_path, "train", SUFFIXES)
    make(tmp_path, shards[1], "train-00001-of-00003-ab12.csv")
    with pytest.raises(UserError, match=r"has 4 files for 3 of the split 'train': .*00003-ab12\.csv.*; remove those"):
      splits.find(tmp_path, "train", SUFFIXES)
    make(tmp_path, "train-00000-of-00001.csv")
    with pytest.raises(UserError, match=r"several files of the split 'train'"):
      splits.find(tmp_path, "train", SUFFIXES)

  def test_a_folder_of_the_hub(self, tmp_path):
    make(tmp_path, "README.md")
    data = make(tmp_path / "data", "train-00000-of-00001.csv")
    assert splits.find(tmp_path, "train", SUFFIXES) == [data / "train-00000-of-00001.csv"]
    with pytest.raises(
      UserError, match=r"no file of the split 'test'.*there is README\.md, data, train-00000-of-00001"
    ):
      splits.find(tmp_path, "test", SUFFIXES)
    (tmp_path / "plain").mkdir()
    parts = make(tmp_path / "plain/train", "0000.parquet", "0001.parquet", "other.csv")
    assert splits.find(tmp_path / "plain", "train", (".parquet",)) == [parts / "0000.parquet", parts / "0001.parquet"]
    make(tmp_path / "b", "train-00000-of-00001.csv")
    make(data / "c", "validation.csv")
    make(tmp_path / "a", "validation.csv", "train.csv")
    with pytest.raises(UserError) as error:
      splits.find(tmp_path, "validation", SUFFIXES)
    assert str(error.value) == (
      f"{tmp_path} has no file of the split 'validation', but folders that have one; choose: "
      f"--config.data.dataset={tmp_path / 'a'} or --config.data.dataset={data / 'c'}"
    )


class TestText:
  def read(self, tmp_path, content):
    (tmp_path / "x.txt").write_bytes(content)
    return splits.read_text(tmp_path / "x.txt")

  @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
  def test_line_ends_of_every_system(self, tmp_path, end):
    assert self.read(tmp_path, f"\ufeffa{end}b{end}{end}c".encode()) == "a\nb\n\nc"

  def test_a_return_inside_a_line_is_a_character_and_a_line_feed_inside_a_cell_stays(self, tmp_path):
    assert self.read(tmp_path, b"a\nb\rc\n") == "a\nb\rc\n"
    assert self.read(tmp_path, b'a,b\r"x\ny",1\r') == 'a,b\n"x\ny",1\n'

  def test_nul_characters(self, tmp_path, caplog):
    assert self.read(tmp_path, b"te\0xt") == "text"
    assert "x.txt: 1 NUL characters were dropped" in caplog.text
    with pytest.raises(UserError, match=r"has 40 NUL characters, the first in line 2; it is damaged"):
      self.read(tmp_path, b"a\nb" + b"\0" * 40)

  @pytest.mark.parametrize(
    ("content", "message"),
    [
      (
        b"caf\xe9",
        r"is not UTF-8 text: the byte 0xe9 in line 1 \(with cp1252 it reads 'café'\); .*CSV UTF-8.* iconv -f cp1252",
      ),
      ("text".encode("utf-16"), r"is UTF-16 text; convert it, as with: iconv -f utf-16"),
      ("text".encode("utf-16-le"), r"seems to be UTF-16-LE text, .*; convert it, as with: iconv -f utf-16-le -t utf-8"),
    ],
  )
  def test_another_encoding_is_one_line(self, tmp_path, content, message):
    with pytest.raises(UserError, match=message):
      self.read(tmp_path, content)

  def test_a_file_that_is_not_there_is_one_line(self, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
      splits.read_text(tmp_path / "no.txt")
