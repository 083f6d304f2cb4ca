"""Corpora to documents."""

import collections
import gzip
import json
import lzma
import re

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from albert_jax.data.corpus import readers, work_units
from albert_jax.data.corpus.readers import documents
from albert_jax.data.corpus.work_units import UNIT_BYTES, Reading, plan
from albert_jax.errors import UserError

DOCUMENTS = [["First title", "One. Two."], ["Größe zählt.", "她走了。"], ["Third."]]
TEXT = "\n\n".join("\n".join(lines) for lines in DOCUMENTS) + "\n"


def read(spec, unit_bytes=UNIT_BYTES, **reading):
  """Returns all documents of a corpus, and the tally."""
  reading, tally = Reading(**reading), collections.Counter()
  units = plan(str(spec), reading, unit_bytes)
  return [lines for unit in units for lines in documents(unit, reading, tally)], tally


def write_zstd(path, data):
  with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
    file.write(data)


def write_parquet(path, texts):
  pyarrow.parquet.write_table(pyarrow.table({"text": texts, "n": [1] * len(texts)}), path, row_group_size=2)


def write(path, text):
  data = text.encode()
  if path.suffix == ".zst":
    write_zstd(path, data)
  else:
    path.write_bytes({".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(data))


@pytest.mark.parametrize("compression", ["", ".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".doc", ""])
def test_every_format_gives_the_same_documents(tmp_path, kind, compression):
  text = {
    ".txt": TEXT,
    "": TEXT,
    ".jsonl": "".join(json.dumps({"text": "\n".join(lines)}) + "\n" for lines in DOCUMENTS),
    ".doc": "".join('<doc id="1" title="x">\n' + "\n\n".join(lines) + "\n\n</doc>\n" for lines in DOCUMENTS),
  }[kind]
  path = tmp_path / f"corpus{kind.replace('.doc', '')}{compression}"
  write(path, text)
  assert read(path)[0] == DOCUMENTS
  assert read(tmp_path)[0] == DOCUMENTS  # as a folder
  assert read(tmp_path / "corp*")[0] == DOCUMENTS  # as a glob


def test_parquet(tmp_path):
  pytest.importorskip("pyarrow")
  write_parquet(tmp_path / "a.parquet", ["\n".join(lines) for lines in DOCUMENTS])
  assert read(tmp_path / "a.parquet")[0] == DOCUMENTS
  with pytest.raises(UserError, match="no column 'body'; expected one of text, n"):
    read(tmp_path / "a.parquet", text_field="body")


def test_remote_files():
  import fsspec

  fsspec.filesystem("memory").pipe("/bucket/a.txt", TEXT.encode())
  assert read("memory://bucket/*.txt")[0] == DOCUMENTS
  assert read("memory://bucket", unit_bytes=10)[0] == DOCUMENTS


@settings(max_examples=30, deadline=None)
@given(
  st.lists(st.lists(st.text(st.characters(codec="utf-8"), max_size=9), max_size=4), max_size=8), st.integers(1, 60)
)
def test_units_cut_between_documents_and_lose_nothing(tmp_path_factory, raw, unit_bytes):
  raw = [[" ".join(line.replace("\0", "").split()) for line in lines] for lines in raw]
  raw = [[line.removeprefix("\ufeff").strip() for line in lines] for lines in raw]
  raw = [[line for line in lines if line and not line.startswith(("<doc ", "</doc>"))] for lines in raw]
  raw = [lines for lines in raw if lines]
  folder = tmp_path_factory.mktemp("corpus")
  for name, separator in (("blank", "\n\n"), ("doc", "\n</doc>\n<doc >\n")):
    text = separator.join("\n".join(lines) for lines in raw)
    (folder / name).write_text(text, "utf-8")
    if raw:
      assert read(folder / name, unit_bytes, layout=name)[0] == raw
  (folder / "a.jsonl").write_text("".join(json.dumps({"text": "\n".join(lines)}) + "\n" for lines in raw))
  if raw:
    assert read(folder / "a.jsonl", unit_bytes)[0] == raw


def test_books_are_recognised_and_joined(tmp_path):
  words = ("the quick brown fox jumps over the lazy dog while nobody is looking at it " * 60).split()
  lines, line = [], ""
  for word in words:
    if len(line) + len(word) > 70:
      lines.append(line.strip())
      line = ""
    line += f" {word}"
  book = "\n".join(lines[:30]) + "\n\n" + "\n".join(lines[30:]) + "\n"
  (tmp_path / "book.txt").write_text(book)
  assert read(tmp_path / "book.txt")[0] == [[" ".join(lines[:30]), " ".join(lines[30:])]]
  # One short sentence a line is not a book.
  sentences = [f"Sentence number {i} has {'very ' * (i % 7)}few words." for i in range(60)]
  (tmp_path / "lines.txt").write_text("\n".join(sentences[:30]) + "\n\n" + "\n".join(sentences[30:]))
  assert read(tmp_path / "lines.txt")[0] == [sentences[:30], sentences[30:]]


def layout(path, text):
  """What a text is taken for."""
  path.write_bytes(text.encode())
  _, tally = read(path)
  return [key.removeprefix("files read as --layout=") for key in tally if key.startswith("files read as")]


def test_paragraphs_of_one_line_are_a_book(tmp_path, monkeypatch):
  speech = ["Er ging.", "Dann kam sie, die er lange nicht gesehen hatte, und schwieg.", "»Nun?« fragte er.", "»Ja!«"]
  paragraphs = ["Das erste Kapitel", *(speech[i % 4] + i % 3 * " Und es wurde spät." for i in range(60))]
  book = "\r\n\r\n".join(paragraphs) + "\r\n"
  assert layout(tmp_path / "a.txt", book) == ["book"]
  assert read(tmp_path / "a.txt")[0] == [paragraphs]
  # Documents of a line each, of several sentences or all alike, are documents.
  reviews = [f"I saw it {i} times. It was {'very ' * (i % 5)}long. I left." for i in range(60)]
  assert layout(tmp_path / "b.txt", "\n\n".join(reviews)) == ["blank"]
  assert layout(tmp_path / "c.txt", "\n\n".join(f"The fact number {i} is true." for i in range(60))) == ["blank"]
  # So they are in a file that is too long for a book, and in one too short to tell.
  assert layout(tmp_path / "d.txt", "\n\n".join(paragraphs[:15])) == ["blank"]
  monkeypatch.setattr(work_units, "MAX_DOCUMENT_CHARS", 1000)
  assert layout(tmp_path / "a.txt", book) == ["blank"]


def test_verse_is_a_book(tmp_path):
  stanza = "In weiter Kammer schlief ich und die Brüder\nAuf Betten, die der Traum umspielt,\nDas Lied, es tönte\nLeis."
  assert layout(tmp_path / "a.txt", "\n\n".join([stanza] * 30) + "\n") == ["book"]
  # Lines without punctuation, as of lists or subtitles, are not.
  lines = "\n".join(f"something that was said {'long ' * (i % 6)}ago" for i in range(9))
  assert layout(tmp_path / "b.txt", "\n\n".join([lines] * 20) + "\n") == ["blank"]


@pytest.mark.realdata
def test_the_layout_of_real_corpora(real_data):
  expected = {"books_de": ("book", 12), "books_en": ("book", 90), "wiki_en": ("blank", 13), "wiki_zh_raw": ("doc", 5)}
  for folder, (kind, count) in expected.items():
    units = plan(str(real_data / "pretrain" / folder), Reading())
    kinds = [span.kind for unit in units for span in unit.spans if span.start == 0]
    assert kinds == [kind] * count, folder


def test_bad_input_is_counted(tmp_path):
  (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfgood \xff line\n\nnul\0here\n\n\n")
  (tmp_path / "b.txt").write_bytes(b"")
  (tmp_path / "c.jsonl").write_text('{"text": "fine"}\nnot json\n{"other": 1}\n[1]\n')
  documents_read, tally = read(tmp_path)
  assert documents_read == [["good \ufffd line"], ["nul here"], ["fine"]]
  assert tally["lines with invalid UTF-8"] == 1 and tally["lines with NUL"] == 1
  assert tally["lines that are not JSON"] == 1 and tally["records without text"] == 2 and tally["empty files"] == 1


def test_a_record_without_text_may_be_first_in_a_part_of_a_file(tmp_path):
  lines = ['{"text": null}', '{"text": "one"}', '{"body": "x"}', '{"text": "two"}']
  (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
  for unit_bytes in (UNIT_BYTES, 1):
    documents_read, tally = read(tmp_path / "a.jsonl", unit_bytes)
    assert (documents_read, tally["records without text"]) == ([["one"], ["two"]], 2)


@pytest.mark.parametrize(("name", "text", "message"), [
  ("a.json", '[\n {"text": "one"},\n {"text": "two"}\n]', "is one JSON list; expected a JSON object a line"),
  ("a.json", '\ufeff[{"text": "one"}]', "is one JSON list"),
  ("a.csv", "text,label\none,1\n", "is a table, which is not read"),
  ("a.tsv", "text\tlabel\none\t1\n", "is a table"),
])  # fmt: skip
def test_labelled_data_is_refused_instead_of_read_in_part(tmp_path, name, text, message):
  (tmp_path / name).write_text(text)
  with pytest.raises(UserError, match=message):
    read(tmp_path / name)


@pytest.mark.parametrize("piece", ["a b ", "é", "她走了 "])
def test_an_endless_line_is_cut_between_characters(tmp_path, monkeypatch, piece):
  monkeypatch.setattr(readers, "MAX_LINE_BYTES", 64)
  (tmp_path / "a.txt").write_text(piece * 100, "utf-8")
  documents_read, tally = read(tmp_path / "a.txt")
  assert "".join(documents_read[0]).replace(" ", "") == (piece * 100).replace(" ", "")
  assert tally["overlong lines cut"] and not tally["lines with invalid UTF-8"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_file_whose_lines_end_with_cr_alone(tmp_path, suffix):
  path = tmp_path / f"a.txt{suffix}"
  data = TEXT.replace("\n", "\r").encode()
  path.write_bytes(gzip.compress(data) if suffix else data)
  assert read(path)[0] == DOCUMENTS
  (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\r{"text": "two"}\r')
  assert read(tmp_path / "a.jsonl")[0] == [["one"], ["two"]]


JAPANESE = "吾輩は猫である。\n名前はまだ無い。\n\nどこで生れたかとんと見当がつかぬ。\n"


@pytest.mark.parametrize(("data", "message"), [
  (TEXT.encode("utf-16"), "is UTF-16 text; add --encoding=utf-16, or convert it, as with: iconv -f utf-16 -t utf-8"),
  (TEXT.encode("utf-16-le"), "seems to be UTF-16-LE text, without a byte order mark; add --encoding=utf-16-le, or"),
  (JAPANESE.encode("utf-16-be"), "seems to be UTF-16-BE text, without a byte order mark; add --encoding=utf-16-be"),
  (b"a" + b"\0" * 40, "40 NUL bytes in its first 41; it is no UTF-8 text"),
  (gzip.compress(TEXT.encode()), r"is a \.gz file, although its name does not say so"),
  (b"PAR1....PAR1", r"is a \.parquet file"),
  (b"PK\x03\x04....", r"is a \.zip file"),
  (TEXT.encode("utf-32"), "is UTF-32 text; add --encoding=utf-32, or convert it, as with: iconv -f utf-32 -t utf-8"),
  (b"a.txt".ljust(257, b"\0") + b"ustar\0" + TEXT.encode(), r"is a \.tar file, which is not read"),
], ids=["utf-16", "utf-16-le", "utf-16-be", "nul", "gz", "parquet", "zip", "utf-32", "tar"])  # fmt: skip
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_text_file_that_is_no_text_is_refused(tmp_path, name, data, message):
  (tmp_path / name).write_bytes(data)
  with pytest.raises(UserError, match=message):
    read(tmp_path / name)


GERMAN = "Die Schüler übten schön.\r\nEs war größer.\r\n\r\n„Ärger“ – sagte er.\r\n"


@pytest.mark.parametrize(("text", "encoding", "message"), [
  (GERMAN, "cp1252", "with cp1252 it reads 'Schüler'. Add --encoding=cp1252"),
  (JAPANESE, "cp932", "with cp932 it reads '吾輩は猫である'. Add --encoding=cp932"),
  (JAPANESE, "euc-jp", "with euc-jp it reads '吾輩は猫である'. Add --encoding=euc-jp"),
  (JAPANESE, "iso-2022-jp", "is ISO-2022-JP text; add --encoding=iso-2022-jp"),
  ("我是学生，他的书在这里。\n" * 3, "gb18030", "Add --encoding=gb18030"),
  ("Это обычный русский текст.\n", "koi8-r", "with koi8-r it reads 'Это'"),
])  # fmt: skip
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".txt.gz"])
def test_another_encoding_is_refused_until_it_is_given(tmp_path, text, encoding, message, suffix):
  (tmp_path / "a.txt").write_text(text, "utf-8")
  as_json = "".join(json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in text.splitlines())
  data = (as_json if suffix == ".jsonl" else text).encode(encoding)
  (tmp_path / f"b{suffix}").write_bytes(gzip.compress(data) if suffix == ".txt.gz" else data)
  with pytest.raises(UserError, match=re.escape(message)):
    read(tmp_path)
  documents, tally = read(tmp_path, encoding=encoding)
  lines = [line for document in documents for line in document]
  assert lines == [line for line in text.splitlines() if line] * 2  # The UTF-8 file reads as before.
  assert not tally["lines with invalid UTF-8"] and sum("files read as " in key for key in tally) >= 1


def test_each_file_has_its_encoding(tmp_path):
  (tmp_path / "a.txt").write_text("x" * 70_000 + "\n" + GERMAN, "cp1252")  # The first umlaut is after the first block.
  (tmp_path / "b.txt").write_text(GERMAN, "utf-16")
  (tmp_path / "c.txt").write_text(GERMAN, "utf-8-sig")
  lines = [line for document in read(tmp_path, encoding="cp1252")[0] for line in document]
  assert lines == ["x" * 70_000, *[line for line in GERMAN.split("\r\n") if line] * 3]
  (tmp_path / "a.txt").write_text(GERMAN, "utf-16-le")
  assert read(tmp_path / "a.txt", encoding="utf-16-le")[0][0][0] == "Die Schüler übten schön."


def test_files_of_several_encodings_need_each_of_them(tmp_path):
  """EUC-JP reads as Shift-JIS almost without errors, as half-width katakana."""
  (tmp_path / "a.txt").write_text(JAPANESE, "cp932")
  (tmp_path / "b.txt").write_text(JAPANESE, "euc-jp")
  with pytest.raises(UserError, match=r"b\.txt seems to be euc-jp text, not shift_jis.*--encoding=shift_jis,euc-jp"):
    read(tmp_path, encoding="Shift-JIS")
  for names in ("shift_jis,euc-jp", "euc_jp, sjis"):
    documents = read(tmp_path, encoding=names)[0]
    assert ["".join(lines) for lines in documents] == [line.replace("\n", "") for line in JAPANESE.split("\n\n")] * 2


def test_characters_that_the_encoding_lacks_are_counted(tmp_path):
  (tmp_path / "a.txt").write_bytes(GERMAN.encode("cp1252") + b"\r\nein\x81Fehler\r\n")
  documents, tally = read(tmp_path, encoding="cp1252")
  assert documents[-1][-1] == "ein\ufffdFehler" and tally["lines with invalid UTF-8"] == 1


def test_utf_8_as_the_encoding_replaces_what_is_invalid(tmp_path):
  (tmp_path / "a.txt").write_text(GERMAN, "cp1252")
  documents, tally = read(tmp_path, encoding="UTF8")
  assert documents[0][0] == "Die Sch\ufffdler \ufffdbten sch\ufffdn." and tally["lines with invalid UTF-8"] == 3


def test_an_unknown_encoding_is_explained(tmp_path):
  (tmp_path / "a.txt").write_text(TEXT)
  for name in ("cp1525", "base64", "no\0"):
    with pytest.raises(UserError, match=r"is unknown.*expected one such as utf-8"):
      read(tmp_path, encoding=name)


def test_a_long_line_is_not_held_while_a_file_is_planned(tmp_path, monkeypatch):
  monkeypatch.setattr(work_units, "MAX_LINE_BYTES", 100)
  (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "' + "x" * 5000 + '"}\n{"text": "two"}\n')
  documents, _ = read(tmp_path / "a.jsonl", unit_bytes=1000)
  assert [len(lines[0]) for lines in documents] == [3, 5000, 3]


def test_half_surrogate_pairs_and_many_containers_are_counted(tmp_path, monkeypatch):
  monkeypatch.setattr(readers.strict_json, "MAX_CONTAINERS", 50)
  lines = ['{"text": "a\\ud800b \\ud83d\\ude00"}', '{"text": "c", "x": [' + "[]," * 99 + "[]]}"]
  (tmp_path / "a.jsonl").write_text("\n".join(lines))
  documents, tally = read(tmp_path / "a.jsonl")
  assert documents == [["a\ufffdb 😀"]]
  assert tally["records with half a surrogate pair"] == tally["records over 16 MiB left out"] == 1


def test_mistakes_are_explained(tmp_path):
  with pytest.raises(UserError, match="matches no file"):
    read(tmp_path / "nothing*.txt")
  with pytest.raises(UserError, match="matches no file"):
    read("./missing.txt")
  with pytest.raises(UserError, match="neither a file nor a TFDS dataset"):
    read("no_such_dataset")
  (tmp_path / "empty.txt").touch()
  with pytest.raises(UserError, match="holds no text"):
    read(tmp_path / "empty.txt")
  (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
  with pytest.raises(UserError, match="its fields are body"):
    read(tmp_path / "a.jsonl")
  (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"text " * 1000)[:-20])
  with pytest.raises(UserError, match=r"no whole \.gz file"):
    read(tmp_path / "a.txt.gz")


def test_an_endless_document_is_cut_between_lines(tmp_path, monkeypatch):
  monkeypatch.setattr(readers, "MAX_DOCUMENT_CHARS", 50)
  lines = [f"Line number {i}." for i in range(30)]
  (tmp_path / "a.txt").write_text("\n".join(lines))
  (tmp_path / "b.jsonl").write_text(json.dumps({"text": "\n".join(lines)}))
  for name in ("a.txt", "b.jsonl"):
    documents_read, tally = read(tmp_path / name)
    assert [line for document in documents_read for line in document] == lines
    assert len(documents_read) > 5 and tally["overlong documents cut"] >= 5


def test_a_long_json_line_is_one_document(tmp_path):
  text = "word " * 400_000
  (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
  assert read(tmp_path / "a.jsonl")[0] == [[text.strip()]]


def compressed(text, suffix):
  """Returns the bytes of a file of that kind."""
  if suffix == ".zst":
    return zstandard.ZstdCompressor(write_checksum=True).compress(text)
  if suffix == ".parquet":
    data = pyarrow.BufferOutputStream()
    table = pyarrow.table({"text": text.decode().splitlines()})
    pyarrow.parquet.write_table(table, data, write_page_checksum=True)
    return data.getvalue().to_pybytes()
  return {".gz": gzip.compress, ".xz": lzma.compress}[suffix](text)


PACKED = [".gz", ".xz", ".zst", ".parquet"]
WORDS = "\n\n".join(f"Document {i} has {i * i} words. It ends." for i in range(3000)).encode()


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda data: data[: len(data) // 2], "is cut short"),
    (lambda data: data[:-1], "is cut short"),
    (lambda data: b"", "is empty"),
    (lambda data: b"hello, I am a plain text", "is not a"),
  ],
)
def test_a_damaged_file_is_named(tmp_path, suffix, damage, message):
  path = tmp_path / f"a{'' if suffix == '.parquet' else '.txt'}{suffix}"
  path.write_bytes(damage(compressed(WORDS, suffix)))
  with pytest.raises(UserError, match=f"{message}.*\\{suffix}|\\{suffix} {message}|holds no text"):
    read(path)


@pytest.mark.parametrize("suffix", PACKED)
def test_a_flipped_byte_is_an_error_or_changes_nothing(tmp_path, suffix):
  good = compressed(WORDS, suffix)
  path = tmp_path / f"a{'' if suffix == '.parquet' else '.txt'}{suffix}"
  path.write_bytes(good)
  expected, _ = read(path)
  refused = 0
  for at in range(0, len(good), max(1, len(good) // 40)):
    path.write_bytes(good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :])
    try:
      assert read(path)[0] == expected
    except UserError:
      refused += 1
  assert refused > 5


def test_members_of_one_compressed_file_are_read_one_after_the_other(tmp_path):
  for suffix in (".gz", ".xz", ".zst"):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(compressed(b"One.\n\n", suffix) + compressed(b"Two.\n", suffix))
    assert read(path)[0] == [["One."], ["Two."]]


def test_a_record_over_the_limit_is_left_out_and_counted(tmp_path, monkeypatch):
  monkeypatch.setattr(readers, "MAX_VALUE_BYTES", 1000)
  texts = ["short", "long " * 500, "also short"]
  (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
  write_parquet(tmp_path / "a.parquet", texts)
  for name in ("a.jsonl", "a.parquet"):
    documents_read, tally = read(tmp_path / name)
    assert documents_read == [["short"], ["also short"]]
    assert tally["records over 16 MiB left out"] == 1


def test_json_nested_too_deeply_is_counted(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + "[" * 100_000 + "\n")
  documents_read, tally = read(tmp_path / "a.jsonl")
  assert documents_read == [["fine"]] and tally["lines that are not JSON"] == 1


def test_a_row_group_that_unpacks_to_far_more_than_text_is_refused(tmp_path):
  path = tmp_path / "bomb.parquet"
  table = pyarrow.table({"text": ["a" * (200 << 20)]})
  pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)
  assert path.stat().st_size < 1 << 20
  with pytest.raises(UserError, match="unpacks to 200"):
    read(path)


def test_repeated_values_of_parquet_are_held_once(tmp_path):
  # 64 values of 4 MiB, which the file holds once: more at a time would be a quarter of a gigabyte.
  path = tmp_path / "a.parquet"
  pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array(["ab " * (1 << 20)] * 64)}), path)
  before = pyarrow.total_allocated_bytes()
  unit, *_ = plan(str(path), Reading())
  for _ in documents(unit, Reading(), collections.Counter()):
    assert pyarrow.total_allocated_bytes() - before < 32 << 20


def test_lines_of_a_script_without_sentence_marks_are_no_book(tmp_path):
  thai = "สวัสดี ครับ ผม ชื่อ น้ำ อยู่ ที่ นี่ เมื่อ วาน ไป ตลาด ซื้อ ผัก"
  (tmp_path / "a.txt").write_text("\n\n".join("\n".join([thai] * 5) for _ in range(30)), "utf-8")
  documents_read, tally = read(tmp_path / "a.txt")
  assert len(documents_read) == 30 and tally["files read as --layout=blank"] == 1
