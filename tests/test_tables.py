"""Reading labelled files: formats, what is wrong with them, and ids."""

import json

import made_up
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from albert_jax.data.finetuning import tables
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError

ROWS = [{"a": 'He said "no", twice.', "b": "Umlaute: äöü", "y": "1"}, {"a": "x\ty", "b": "", "y": "0"}]


def write(path, text):
  path.write_bytes(text.encode("utf-8") if isinstance(text, str) else text)
  return path


def read(path, fields=("a", "y"), **kwargs):
  return tables.read_file(path, list(fields), **kwargs)


class TestFormats:
  def test_all_give_the_same_rows(self, tmp_path):
    paths = {
      "rows.csv": 'a,b,y\r\n"He said ""no"", twice.",Umlaute: äöü,1\r\n"x\ty",,0\r\n',
      "semicolon.csv": 'a;b;y\n"He said ""no"", twice.";Umlaute: äöü;1\n"x\ty";;0\n',
      "quoted.tsv": 'a\tb\ty\n"He said ""no"", twice."\tUmlaute: äöü\t1\n"x\ty"\t\t0\n',
      "rows.jsonl": "\n".join(map(json.dumps, ROWS)),
      "list.json": json.dumps(ROWS),
      "numbered.json": json.dumps({str(i): row for i, row in enumerate(ROWS)}),
      "lines.json": "\n".join(map(json.dumps, ROWS)) + "\n",
      "UPPER.JSON": json.dumps(ROWS, indent=1),
    }
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    for name, text in paths.items():
      write(tmp_path / name, text)
    for name in [*paths, "rows.parquet"]:
      table = read(tmp_path / name, ["a", "b"], optional=["y", "z"])
      assert table.columns == {
        "a": [ROWS[0]["a"], ROWS[1]["a"]], "b": ["Umlaute: äöü", ""], "y": ["1", "0"], "z": [None, None],
      }, name  # fmt: skip
      assert len(table) == 2

  def test_quotes_that_are_plain_characters(self, tmp_path):
    """As in GLUE: what does not make sense as CSV quotes in every line is none."""
    text = 'a\ty\n" The first\t1\nsaid "so"\t0\n'
    assert read(write(tmp_path / "x.tsv", text)).columns["a"] == ['" The first', 'said "so"']
    # CSV quotes would make one row of these two, and it would have two columns.
    across = write(tmp_path / "across.tsv", 'a\ty\n"one\t1\ntwo"\t0\n')
    assert read(across).columns == {"a": ['"one', 'two"'], "y": ["1", "0"]}
    assert read(across, quotes="csv").columns["a"] == ["one\t1\ntwo"]
    with pytest.raises(UserError, match=r"x\.tsv: in the row at line 2: .*data\.quotes=none"):
      read(tmp_path / "x.tsv", quotes="csv")

  def test_a_line_break_in_a_quoted_cell_and_where_rows_are(self, tmp_path):
    table = read(write(tmp_path / "x.csv", 'a,y\n"two\nlines",1\n\nlast,0\n'))
    assert table.columns["a"] == ["two\nlines", "last"]
    assert table.lines == [2, 5]
    assert table.where(1) == f"{tmp_path / 'x.csv'} line 5"

  def test_one_object_over_several_lines(self, tmp_path):
    assert read(write(tmp_path / "x.json", json.dumps({"a": "one", "y": 1}, indent=1))).columns["a"] == ["one"]

  @pytest.mark.parametrize("text", ["a,y\nx,1\n,\n , \n", 'a,y\n"x",1\n,\n , \n'])
  def test_lines_of_blank_cells_are_no_rows(self, text, tmp_path):
    """As spreadsheets write behind the last row."""
    assert read(write(tmp_path / "x.csv", text)).columns == {"a": ["x"], "y": ["1"]}

  def test_columns_by_number_have_no_header(self, tmp_path):
    table = read(write(tmp_path / "x.tsv", "gj04\t1\t\tA sentence.\ncj99\t0\t*\tAnother.\n"), ["3", "1"])
    assert table.columns == {"3": ["A sentence.", "Another."], "1": ["1", "0"]}

  def test_a_text_longer_than_the_csv_module_likes(self, tmp_path):
    long = "word " * 50_000
    assert read(write(tmp_path / "x.csv", f'a,y\n"{long}",1\n')).columns["a"] == [long]


class TestWhatIsWrong:
  def test_byte_order_mark_and_nul(self, tmp_path, caplog):
    assert read(write(tmp_path / "x.tsv", "\ufeffa\ty\nte\0xt\t1\n")).columns == {"a": ["text"], "y": ["1"]}
    assert "x.tsv: 1 NUL characters" in caplog.text

  @pytest.mark.parametrize(
    ("name", "text", "words"),
    [
      ("x.tsv", "a\tlabel\nx\t1\n", r"no column 'y'.*one of a, label$"),
      ("x.csv", "a\ty\nx\t1\n", None),  # columns are looked for behind tabs too
      ("x.csv", "", "is empty"),
      ("x.jsonl", "\n", "is empty"),
      ("x.jsonl", '{"a": 1, "y": 2}\n{"a": 1', "line 2 is not JSON"),
      ("x.jsonl", '{"a": 1, "y": 2}\n{"a": 1}', "line 2: expected an object with the fields a, y, but it is a$"),
      ("x.jsonl", "[1]", "line 1: expected an object"),
      ("x.tsv", "a\ty\nx\t1\ny\t2\t3\n", r"1 of 2 lines have another number of columns than the 2 .*line 3"),
      ("x.tsv", "a\ta\ty\nx\t1\t1\n", "several columns 'a'"),
      ("x.tsv", b"a\ty\nx\t1\nna\xefve\t1\n", "not UTF-8 text: the byte 0xef in line 3"),
      ("x.parquet", "no", "no whole Parquet file"),
      ("x.doc", "a", "expected a file that ends in one of"),
      ("x.csv", b"PK\x03\x04\x14\0\x06\0", r"x\.csv is a \.zip, \.xlsx or \.docx file, which is no text"),
    ],
  )
  def test_is_one_line_that_says_where(self, name, text, words, tmp_path):
    path = write(tmp_path / name, text)
    if words is None:
      assert read(path).columns["a"] == ["x"]
    else:
      with pytest.raises(UserError, match=words) as error:
        read(path)
      assert "\n" not in str(error.value)

  def test_a_split_without_rows(self, tmp_path):
    with pytest.raises(UserError, match=r"x\.csv has no rows; expected one for each example of the split 'train'"):
      tables.read(write(tmp_path / "x.csv", "a,y\n"), "train", ["a"])

  def test_ragged_lines_can_be_skipped_but_not_all(self, tmp_path, caplog):
    path = write(tmp_path / "x.tsv", "a\ty\nx\t1\ny\t2\t3\n")
    assert read(path, skip_ragged=True).columns["a"] == ["x"]
    assert "1 lines have another number of columns than the 2 of the first line (the first is line 3)" in (caplog.text)
    with pytest.raises(UserError, match="1 of 1 lines"):
      read(write(tmp_path / "y.tsv", "a\ty\ny\t2\t3\n"), skip_ragged=True)

  def test_empty_texts_are_counted(self, tmp_path, caplog):
    table = read(write(tmp_path / "x.jsonl", '{"a": "", "y": 1}\n{"a": null, "y": 1}\n{"a": 7, "y": 1}'))
    assert tables.texts(table, "a") == ["", "", "7"]
    assert "2 of 3 rows have an empty 'a'" in caplog.text
    with pytest.raises(UserError, match=r"line 1: 'a' holds \[1\], expected a text"):
      tables.texts(read(write(tmp_path / "y.jsonl", '{"a": [1], "y": 1}')), "a")


class TestCells:
  @pytest.mark.parametrize("text", ["NaN", "null", '""', '"nan"'])
  def test_a_text_that_is_missing_is_empty_and_counted(self, text, tmp_path, caplog):
    table = read(write(tmp_path / "x.jsonl", f'{{"a": {text}, "y": 1}}'))
    assert tables.texts(table, "a") == [""]
    assert "1 of 1 rows have an empty 'a'" in caplog.text

  @pytest.mark.parametrize("value", ["[" * 5000 + "]" * 5000, "9" * 5000, '"\\ud800"', "Infinity", "1e400"])
  @pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
  def test_hostile_json_is_one_line(self, value, name, tmp_path):
    with pytest.raises(UserError, match=r"x\.jsonl? line 2") as error:
      read(write(tmp_path / name, f'{{"a": "b", "y": 1}}\n{{"a": {value}, "y": 1}}\n'))
    assert "\n" not in str(error.value) and len(str(error.value)) < 300

  def test_json_over_several_lines_says_where_it_is_wrong(self, tmp_path):
    with pytest.raises(UserError, match=r"x\.json is not JSON: .* at line 3, column 1"):
      read(write(tmp_path / "x.json", '[\n{"a": 1, "y": 2},\n]'))

  def test_line_ends_of_cr_alone(self, tmp_path):
    assert read(write(tmp_path / "x.csv", 'a,y\r"b\nc",1\rd,0\r')).columns == {"a": ["b\nc", "d"], "y": ["1", "0"]}
    assert read(write(tmp_path / "x.jsonl", '{"a": 1, "y": 2}\r{"a": 3, "y": 4}')).columns == {"a": [1, 3], "y": [2, 4]}

  def test_a_small_parquet_file_that_expands_to_gigabytes(self, tmp_path):
    text = pyarrow.array(["x" * (1 << 20)]).dictionary_encode().take(pyarrow.array([0] * 4000))
    pyarrow.parquet.write_table(pyarrow.table({"a": text, "y": [1] * 4000}), tmp_path / "x.parquet")
    assert (tmp_path / "x.parquet").stat().st_size < 100_000
    with pytest.raises(UserError, match=r"x\.parquet expands to more than 268,435,456 bytes"):
      read(tmp_path / "x.parquet")

  @pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.binary()])
  @pytest.mark.parametrize("shape", ["flat", "list", "struct"])
  def test_so_does_one_text_in_a_column_of_any_kind(self, tmp_path, kind, shape):
    index = pyarrow.array([0] * 4000, pyarrow.int32())
    column = pyarrow.DictionaryArray.from_arrays(index, pyarrow.array(["x" * 1_000_000]).cast(kind))
    if shape == "list":
      column = pyarrow.ListArray.from_arrays(pyarrow.array(range(0, 4001, 100), pyarrow.int32()), column)
    elif shape == "struct":
      column = pyarrow.StructArray.from_arrays([column], ["a"])
    table = pyarrow.table({"a": column, "y": [1] * len(column)})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet expands to more than 268,435,456 bytes"):
      read(tmp_path / "x.parquet")

  def test_a_column_that_is_there_twice(self, tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["t"])] * 3, names=["a", "y", "y"])
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UserError, match="has several columns 'y'"):
      read(tmp_path / "x.parquet")

  def test_a_flipped_byte_of_a_parquet_file_is_one_line_or_another_value(self, tmp_path):
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"a": ["some text"] * 50, "y": list(range(50))}), path)
    content = path.read_bytes()
    for i in range(0, len(content), len(content) // 100):
      path.write_bytes(content[:i] + bytes([content[i] ^ 0xFF]) + content[i + 1 :])
      try:
        tables.texts(read(path), "a")
      except UserError as error:
        assert "\n" not in str(error)


class TestHub:
  """Files of the Hugging Face Hub."""

  def test_classes_are_their_names(self, tmp_path):
    rows = [{"a": str(i), "y": i % 3 - 1, "many": [0, i % 2], "n": i, "text": "x"} for i in range(5)]
    names = made_up.classes("mola", "badu")
    for kind in ("Sequence", "List", "list"):
      made_up.hub(
        tmp_path, "train", rows, 2, a={"dtype": "string", "_type": "Value"}, y=names, text=names, gone=names,
        many=made_up.classes("x", "y", kind=kind), n={"dtype": "int64", "_type": "Value"},
      )  # fmt: skip
      table = tables.read(tmp_path, "train", ["a", "y"], optional=["many", "n", "text"])
      assert table.columns["a"] == ["0", "1", "2", "3", "4"]
      assert table.columns["y"] == [None, "mola", "badu", None, "mola"]
      assert table.columns["many"] == [["x", "x"], ["x", "y"], ["x", "x"], ["x", "y"], ["x", "x"]]
      assert table.columns["n"] == [0, 1, 2, 3, 4]
      assert table.columns["text"] == ["x"] * 5
      assert table.classes["y"] == ["mola", "badu"]

  def test_a_row_of_shards_is_named_by_its_file(self, tmp_path):
    made_up.hub(tmp_path, "train", [{"a": str(i), "y": i} for i in range(5)], 2)
    table = tables.read(tmp_path, "train", ["a", "y"])
    assert table.source == f"{tmp_path}/train-00000-of-00002.parquet and 1 more"
    assert table.where(1) == f"{tmp_path}/train-00000-of-00002.parquet line 2"
    assert table.where(2) == f"{tmp_path}/train-00001-of-00002.parquet line 1"
    assert table.select(np.arange(5) > 2).where(0) == f"{tmp_path}/train-00001-of-00002.parquet line 2"
    with pytest.raises(UserError, match=r"train-00000-of-00002\.parquet has no column 'b'; expected one of a, y"):
      tables.read(tmp_path, "train", ["b"])
    (tmp_path / "train-00001-of-00002.parquet").write_text("no")
    with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet is no whole Parquet file"):
      tables.read(tmp_path, "train", ["a"])

  @pytest.mark.parametrize(
    ("about", "words"),
    [
      (
        '{"info": {"features": {"y": {"names": ["a", "b"], "_type": "ClassLabel"}}}}',
        "'y' holds the class 2, of 2 that",
      ),
      ("{", "metadata 'huggingface' is not JSON"),
      ("[]", "metadata 'huggingface': expected an object"),
      ('{"info": []}', ""),
      ('{"info": {"features": {"y": {"names": 3, "_type": "ClassLabel"}, "a": 1}}}', ""),
    ],
  )
  def test_damaged_metadata(self, about, words, tmp_path):
    table = pyarrow.table({"a": ["t"] * 3, "y": [0, 1, 2]}).replace_schema_metadata({"huggingface": about})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    if not words:
      assert read(tmp_path / "x.parquet").columns["y"] == [0, 1, 2]
      return
    with pytest.raises(UserError, match=words):
      read(tmp_path / "x.parquet")


class TestHeldOut:
  def test_depends_on_the_text_alone(self):
    def rows(texts):
      return tables.Examples({"a": texts}, list(range(len(texts))), "x")

    texts = [f"text {i % 900}" for i in range(1000)]
    away = tables.held_out(rows(texts), ["a"], 0.2)
    assert 0.15 < away.mean() < 0.25
    assert away[:100].tolist() == away[900:].tolist()  # the same texts
    assert tables.held_out(rows(texts[::-1]), ["a"], 0.2).tolist() == away[::-1].tolist()
    assert np.all(tables.held_out(rows(texts), ["a"], 0.3)[away])
    assert len(rows(texts).select(away)) == away.sum()
    with pytest.raises(UserError, match="validation_fraction"):
      tables.held_out(rows(texts), ["a"], 1.0)


class TestIds:
  @given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 60))
  def test_the_longer_of_a_pair_loses_first(self, a, b, total):
    """_truncate_seq_pair of the original's classifier_utils.py."""
    x, y = a, b
    while x + y > total:
      if x > y:
        x -= 1
      else:
        y -= 1
    assert tables.shares(a, b, total) == (x, y)

  def test_pairs_and_single_texts(self, tmp_path, vocabulary, caplog):
    first, second = ["badu kelo", "gi"], ["mo", "nora " * 50]
    encoded = tables.encode(vocabulary, first, second, 16, "here")
    a, b = vocabulary.encode(first[0]), vocabulary.encode(second[0])
    assert encoded["input_ids"][0].tolist() == [vocabulary.cls_id, *a, vocabulary.sep_id, *b, vocabulary.sep_id]
    assert encoded["token_type_ids"][0].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)
    assert len(encoded["input_ids"][1]) == len(encoded["token_type_ids"][1]) == 16
    assert encoded["input_ids"][1][-1] == vocabulary.sep_id
    assert "here: 1 of 2 rows exceed data.seq_length=16 tokens and were cut" in caplog.text
    alone = tables.encode(vocabulary, [first[0], ""], None, 16, "here")
    assert alone["input_ids"][0].tolist() == [vocabulary.cls_id, *a, vocabulary.sep_id]
    assert alone["input_ids"][1].tolist() == [vocabulary.cls_id, vocabulary.sep_id]
    assert set(alone["token_type_ids"][0]) == {0}

  def test_labels_in_an_order_that_is_always_the_same(self):
    assert tables.numbered({"10", "9", "-1"}) == ["-1", "9", "10"]
    assert tables.numbered({"b", "10", "a"}) == ["10", "a", "b"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  return Tokenizer(made_up.vocabulary(tmp_path_factory.mktemp("vocabulary")))
