"""albert-jax predict: lines in, JSON lines out, and what it says of lines that are none."""

import datetime
import errno
import json
import os
import pathlib
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from albert_jax import pipelines, predictions
from albert_jax.__main__ import main
from albert_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]


class Model:
  """A stand-in for a Pipeline: says how long a text is, and refuses some."""

  takes_pairs = False

  def __init__(self):
    self.calls = []

  def item(self, value, number=1):
    if not isinstance(value, str | tuple):
      raise UserError(f"input {number} is {value!r}")
    return value

  def run(self, items):
    self.calls.append(len(items))
    if any("refused" in item for item in items):
      raise UserError("a text that cannot be")
    return [{"size": len(item)} for item in items]


@pytest.fixture
def model(monkeypatch):
  model = Model()
  model.asked = []
  monkeypatch.setattr(pipelines, "pipeline", lambda *args, **kwargs: model.asked.append((args, kwargs)) or model)
  return model


@pytest.fixture
def ask(model, capsys, tmp_path):
  """Runs the command on a file of these bytes: (exit code, JSON lines, stderr)."""

  def run(content, *flags):
    (tmp_path / "in").write_bytes(content)
    code = main(["predict", "--checkpoint=X", f"--input={tmp_path / 'in'}", *flags])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err.replace(str(tmp_path), "")

  return run


def test_a_line_each(ask, model):
  code, answers, err = ask(
    b'\xef\xbb\xbfone\r\n\r\n{"text"\n'.replace(b'{"text"\n', b"three\n") + "vier\u2028ä".encode()
  )
  assert (code, answers) == (0, [{"size": 3}, {"size": 5}, {"size": 6}])
  assert err == "1 blank lines were passed over\n"
  assert model.asked == [((None, "X"), {"dtype": ""})]


def test_objects_and_their_ids(ask):
  lines = b'{"id": 7, "a": "xy", "b": "z"}\n{"id": null, "a": "", "b": "z"}\n'
  assert ask(lines, "--fields=a")[1] == [{"id": 7, "size": 2}, {"id": None, "size": 0}]
  assert ask(lines, "--fields=a,b")[1] == [{"id": 7, "size": 2}, {"id": None, "size": 2}]
  code, _, err = ask(lines, "--fields=c")
  assert (code, "line 1: no field 'c'; there are id, a, b" in err) == (2, True)
  assert ask(b'"a"\n', "--format=json")[1] == [{"size": 1}]
  assert ask(b'{"a"\n', "--format=text")[1] == [{"size": 4}]


def test_pairs(ask, model):
  assert ask(b"a\tbb\tc\n")[1] == [{"size": 6}]
  assert ask(b"a\tbb\tc\n", "--format=pairs")[1] == [{"size": 3}]
  model.takes_pairs = True
  assert ask(b"a\tbb\n")[1] == [{"size": 2}]


@pytest.fixture
def ask_file(model, capsys, tmp_path):
  """Runs the command on a file of this name: (exit code, JSON lines, stderr)."""

  def run(name, content, *flags):
    (tmp_path / name).write_bytes(content)
    code = main(["predict", f"--checkpoint={tmp_path}/run", f"--input={tmp_path / name}", *flags])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err.replace(str(tmp_path), "")

  return run


TABLE = '\ufeffid;text;label\r\n7;"a; b\r\n😀";no\r\n8;;yes\r\n'.encode()


def test_a_csv_is_read_by_its_columns(ask_file):
  code, answers, _ = ask_file("a.csv", TABLE)
  assert (code, answers) == (0, [{"id": "7", "size": 6}, {"id": "8", "size": 0}]), "an empty text keeps its place"
  assert ask_file("a.csv", TABLE, "--fields=label")[1] == [{"id": "7", "size": 2}, {"id": "8", "size": 3}]
  assert ask_file("a.CSV", TABLE, "--fields=text,label")[1][0] == {"id": "7", "size": 2}
  assert len(ask_file("a.csv", TABLE, "--format=text")[1]) == 4
  assert ask_file("a.dat", b"text\tlabel\nabc\tno\n", "--format=table") == (
    2, [], "albert-jax predict: /a.dat: expected a file that ends in one of .csv .tsv .txt .jsonl .ndjson .json "
    ".parquet; name the columns of the texts with --fields=A or A,B, or add --format=text\n"
  )  # fmt: skip
  assert ask_file("a.txt", b"text\tlabel\nabc\tno\n", "--format=table")[1] == [{"size": 3}]


def test_a_json_list_is_an_item_an_input(ask_file):
  rows = [{"id": 7, "review": "good"}, {"review": "fine\nfilm"}]
  for indent in (None, 1):
    content = json.dumps(rows, indent=indent).encode()
    assert ask_file("a.json", content, "--fields=review")[1] == [{"id": 7, "size": 4}, {"size": 9}]
  assert ask_file("a.JSON", b'["one", "three"]')[1] == [{"size": 3}, {"size": 5}]
  assert "a.json line 2: expected an object or a text, got 5" in ask_file("a.json", b'["one", 5]')[2]


def test_lines_that_end_with_cr_alone(ask_file):
  assert ask_file("a.txt", b"one\rthree\r") == (0, [{"size": 3}, {"size": 5}], "")


@pytest.mark.parametrize("content, message", [
  ("one\ntwo\n".encode("utf-16"), "/a.txt is UTF-16 text; convert it, as with: iconv -f utf-16 -t utf-8"),
  (b"PK\x03\x04\x14\nx\n", "/a.txt is a .zip, .xlsx or .docx file, which is no text; unpack it"),
])  # fmt: skip
def test_a_file_that_is_no_text_is_refused_as_a_whole(ask_file, content, message):
  code, answers, err = ask_file("a.txt", content, "--skip_bad")
  assert (code, answers) == (2, [])
  assert message in err


def test_cells_of_a_table_are_texts_as_in_training(ask_file, tmp_path):
  ids = [datetime.date(2026, 1, 2), None]
  pyarrow.parquet.write_table(pyarrow.table({"text": [123, None], "id": ids}), tmp_path / "x.parquet")
  assert ask_file("a.parquet", (tmp_path / "x.parquet").read_bytes())[1] == [
    {"id": "2026-01-02", "size": 3},
    {"size": 0},
  ]
  pyarrow.parquet.write_table(pyarrow.table({"text": ["nan"], "id": [float("nan")]}), tmp_path / "x.parquet")
  assert ask_file("a.parquet", (tmp_path / "x.parquet").read_bytes())[1] == [{"size": 0}]


def test_a_csv_with_other_columns_names_the_flag(ask_file):
  code, answers, err = ask_file("a.csv", b"review,stars\ngood,5\n")
  assert (code, answers) == (2, [])
  assert "has no column 'text'; expected one of review, stars" in err and "with --fields=A or A,B" in err
  assert err.count("\n") == 1


def test_the_columns_of_a_table_are_those_that_the_run_was_trained_on(ask_file, tmp_path):
  (tmp_path / "run").mkdir()
  config = {"task": {"name": "classify"}, "model": {}, "data": {"text_fields": "review", "quotes": "none"}}
  (tmp_path / "run/config.json").write_text(json.dumps(config))
  assert ask_file("a.csv", b'review,stars\n"good,5\n')[1] == [{"size": 5}]


def test_a_tsv_for_a_model_of_pairs_may_have_a_pair_a_line(ask_file, model):
  assert ask_file("a.tsv", b"text\tlabel\nabc\tno\n")[1] == [{"size": 3}]
  model.takes_pairs = True
  assert len(ask_file("a.tsv", b"a\tbb\nc\td\n")[1]) == 2
  assert len(ask_file("a.tsv", b"text\tpair\nc\td\n")[1]) == 1


def test_a_bad_row_of_a_table_has_its_line(ask_file):
  code, answers, err = ask_file("a.csv", b"text\ngood\nrefused\nfine\n")
  assert (code, answers) == (2, [{"size": 4}]) and "/a.csv line 3: " in err
  assert ask_file("a.csv", b"text\ngood\nrefused\nfine\n", "--skip_bad")[1] == [{"size": 4}, {"size": 4}]


@pytest.mark.parametrize("bad, why", [
  (b"\xff\xfe", "it is not UTF-8"), (b"refused", "cannot be"),
  (b'{"a": ', "the line is not JSON: Expecting value at character 7; --format=text takes it as text"),
  (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested deeper than"),
  (b'{"id": ' + b"9" * 5000 + b', "text": "x"}', "5,000 digits is over the limit"),
  (b'{"text": "x \\ud800"}', "half a surrogate pair (\\ud800)"),
  (b'{"id": NaN, "text": "x"}', "NaN is no JSON number"),
  (b'{"text": 1}', "input 1 is {'text': 1}"),
])  # fmt: skip
def test_a_bad_line_stops_it_or_is_left_out(ask, bad, why):
  content = b"one\n" * 3 + bad + b"\n" + b"three\n" * 2
  code, answers, err = ask(content)
  assert (code, answers) == (2, [{"size": 3}] * 3), "what came before it is answered"
  assert "/in line 4: " in err
  assert why in err
  assert "--skip_bad" in err
  code, answers, err = ask(content, "--skip_bad")
  assert (code, answers) == (0, [{"size": 3}] * 3 + [{"size": 5}] * 2)
  assert "/in line 4 skipped: " in err
  assert "1 lines could not be read and were skipped" in err


def test_a_long_file_is_read_in_pieces(ask, model):
  count = 2 * predictions.CHUNK + 5
  _, answers, _ = ask(b"".join(b"x" * (i % 7 + 1) + b"\n" for i in range(count)))
  assert [x["size"] for x in answers] == [i % 7 + 1 for i in range(count)]
  assert model.calls == [predictions.CHUNK, predictions.CHUNK, 5]


def test_a_line_over_the_limit_is_refused_and_the_next_one_is_read(ask, model, monkeypatch):
  monkeypatch.setattr(predictions, "MAX_LINE_BYTES", 10)
  code, answers, err = ask(b"short\n" + b"x" * 100 + b"\nlast\n", "--skip_bad")
  assert code == 0
  assert [x["size"] for x in answers] == [5, 4]
  assert "/in line 2 skipped: it is over the limit of 10 bytes; split the text" in err
  assert ask(b"x" * 100)[0] == 2


def test_long_lines_are_answered_before_many_are_in_memory(ask, model, monkeypatch):
  monkeypatch.setattr(predictions, "CHUNK_BYTES", 100)
  assert len(ask((b"x" * 60 + b"\n") * 4)[1]) == 4
  assert model.calls == [2, 2]


def test_a_file_of_answers_is_whole_or_not_there(ask, tmp_path):
  out = tmp_path / "out"
  assert ask(b"a\nrefused\n", f"--output={out}")[0] == 2
  assert [path.name for path in tmp_path.iterdir()] == ["in"]
  assert ask(b"a\nb\n", f"--output={out}")[:2] == (0, [])
  assert out.read_text() == '{"size": 1}\n' * 2
  assert "there is no folder" in ask(b"a\n", f"--output={tmp_path}/no/out")[2]


def test_files_and_lists_are_answered_from_python(model, tmp_path):
  (tmp_path / "a.txt").write_text("one\n\nrefused\n")
  (tmp_path / "b.csv").write_text("text,id\nfour,7\n")
  sources = [tmp_path / "a.txt", str(tmp_path / "b.csv"), ["five"]]
  results = [(where.split("/")[-1], id, result) for where, id, result in predictions.answers(model, sources)]
  assert results[:2] == [("a.txt line 1", {}, {"size": 3}), ("a.txt line 2", {}, None)]
  assert results[2][0] == "a.txt line 3" and isinstance(results[2][2], UserError)
  assert results[3:] == [("b.csv line 2", {"id": "7"}, {"size": 4}), ("line 1", {}, {"size": 4})]


def test_a_pipe_is_answered_as_it_comes(model):
  reader, writer = os.pipe()
  with open(reader, "rb") as lines, open(writer, "wb", buffering=0) as source:
    chunks = predictions._chunks(lines)
    for number in (1, 2, 3):
      source.write(b"line\n")
      assert next(chunks) == [(number, b"line\n")]
    source.write(b"the\nend")
    source.close()
    assert [line for chunk in chunks for line in chunk] == [(4, b"the\n"), (5, b"end")]


def _piped(content):
  reader, writer = os.pipe()
  with open(reader, "rb") as lines:
    with open(writer, "wb") as source:
      source.write(content)
    return [line for chunk in predictions._chunks(lines) for line in chunk]


def test_a_pipe_of_another_encoding_is_refused_and_cr_alone_ends_its_lines():
  with pytest.raises(UserError, match="standard input is UTF-16 text; convert it, as with: iconv -f utf-16 -t utf-8"):
    _piped("one\ntwo\n".encode("utf-16"))
  assert _piped(b"one\rthree\r") == [(1, b"one"), (2, b"three")]
  assert _piped(b"one\r\ntwo\rmore\r") == [(1, b"one\r\n"), (2, b"two\rmore\r")]
  assert _piped(b"") == []


def test_arguments(model, capsys, tmp_path):
  assert main(["predict", "--checkpoint=X", "--task=embed", "--top_k=2", "--batch_size=3", "aa", "b"]) == 0
  assert capsys.readouterr().out == '{"size": 2}\n{"size": 1}\n'
  assert model.asked == [(("embed", "X"), {"dtype": "", "top_k": 2, "batch_size": 3})]
  for flags, message in (
    (["--input=nowhere"], "no file 'nowhere'"), (["--top_k=0", "a"], "--top_k=0 must be 1 or more"),
    (["--input=x", "a"], "not both"),
  ):  # fmt: skip
    assert main(["predict", "--checkpoint=X", *flags]) == 2
    assert message in capsys.readouterr().err


SCRIPT = """
import sys
from albert_jax import __main__
from albert_jax import pipelines
class Model:
  takes_pairs = False
  def item(self, value, number=1): return value
  def run(self, items):
    if "stop" in items: raise KeyboardInterrupt
    return [{"text": item} for item in items]
pipelines.pipeline = lambda *args, **kwargs: Model()
sys.exit(__main__.main(["predict", "--checkpoint=X"]))
"""


@pytest.mark.parametrize("has_ended", [True, False])
def test_whoever_reads_may_have_enough(has_ended):
  process = subprocess.Popen(
    [sys.executable, "-W", "error", "-c", SCRIPT],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    env={**os.environ, "JAX_PLATFORMS": "cpu"}, cwd=ROOT,
  )  # fmt: skip
  process.stdin.write(b"one\n")
  process.stdin.flush()
  assert process.stdout.readline() == b'{"text": "one"}\n'
  process.stdout.close()
  process.stdin.write(b"two\n" * 10)
  process.stdin.flush()
  if has_ended:
    process.stdin.close()
  assert process.wait(60) == 0
  process.stdin.close()
  assert process.stderr.read() == b""
  process.stderr.close()


def test_interrupted_it_ends_with_one_line():
  result = subprocess.run(
    [sys.executable, "-W", "error", "-c", SCRIPT], input=b"stop\n", capture_output=True, check=False, timeout=120,
    env={**os.environ, "JAX_PLATFORMS": "cpu"}, cwd=ROOT,
  )  # fmt: skip
  assert (result.returncode, result.stderr) == (130, b"albert-jax predict: interrupted\n")


def test_an_input_that_breaks_is_an_error_and_no_wait():
  class Broken:
    def fileno(self):
      return reads

    parts = iter([b"one\n"])

    def readline(self, size):
      for part in self.parts:
        return part
      raise OSError(errno.EIO, "Input/output error")

  reads, writes = os.pipe()
  lines = []
  with pytest.raises(UserError, match=r"standard input cannot be read: Input/output error; give texts by --input=FILE"):
    for chunk in predictions._chunks(Broken()):
      lines += chunk
  assert lines == [(1, b"one\n")]
  os.close(reads)
  os.close(writes)
