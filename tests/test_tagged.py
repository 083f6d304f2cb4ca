"""Reading tags: every format to the same sentences, every oddity counted or one clear error; then rows of pieces."""

import itertools
import json

import made_up
import numpy as np
import pytest

from albert_jax.data.finetuning import tagged
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError

WORDS = [["U.N.", "official", "Ekeus"], ["#", "#tag", "Baghdad"]]
TAGS = [["B-ORG", "O", "B-PER"], ["O", "O", "B-LOC"]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  return Tokenizer(made_up.vocabulary(tmp_path_factory.mktemp("vocabulary")))


def read(tmp_path, content, **kwargs):
  path = tmp_path / "some.conll"
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return tagged.read((path,), **kwargs)


def test_parquet_of_the_hub(tmp_path):
  labels = ["O", "B-ORG", "B-PER", "B-LOC"]
  rows = [
    {"id": i, "tokens": w, "ner_tags": [*map(labels.index, t)], "pos_tags": [7] * 3}
    for i, (w, t) in enumerate(zip(WORDS, TAGS, strict=True))
  ]
  made_up.hub(tmp_path / "data", "train", rows, 2, ner_tags=made_up.classes(*labels, kind="Sequence"))
  hidden = [row | {"ner_tags": [-1] * 3} for row in rows]
  made_up.hub(tmp_path / "data", "test", hidden, ner_tags=made_up.classes(*labels, kind="List"))
  paths = tagged.split_files(tmp_path, "train")
  assert len(paths) == 2
  sentences = tagged.read(paths, tag_field="ner_tags")
  assert (sentences.words, sentences.tags) == (WORDS, TAGS)
  assert tagged.read(tagged.split_files(tmp_path, "test"), tag_field="ner_tags", may_hide=True).tags is None
  with pytest.raises(
    UserError, match=r"00002\.parquet:1 has no list 'tags' \(its lists are tokens, ner_tags, pos_tags\)"
  ):
    tagged.read(paths)
  with pytest.raises(UserError, match=r"00002\.parquet:1 has 7 where a word or a tag should be"):
    tagged.read(paths, tag_field="pos_tags")
  rows[1]["tokens"] = rows[1]["tokens"][:2]
  made_up.hub(tmp_path / "data", "train", rows, 2, ner_tags=made_up.classes(*labels, kind="List"))
  with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet:1 has 2 words and 3 tags"):
    tagged.read(paths, tag_field="ner_tags")


CONLL_2003 = """-DOCSTART- -X- -X- O

U.N. NNP I-NP B-ORG
official NN I-NP O
Ekeus NNP I-NP B-PER

# NN I-NP O
#tag NN I-NP O
Baghdad NNP I-NP B-LOC
"""
FORMATS = {
  "CoNLL-2003": CONLL_2003,
  "Windows": b"\xef\xbb\xbf" + CONLL_2003.replace("\n", "\r\n").encode(),
  "tabs, blank lines with a tab": "U.N.\tB-ORG\nofficial\tO\nEkeus\tB-PER\n\t\n\t\n#\tO\n#tag\tO\nBaghdad\tB-LOC",
  "comments": "# id = 1\n# text = U.N. …\nU.N. B-ORG\nofficial O\nEkeus B-PER\n\n# id\n# O\n#tag O\nBaghdad B-LOC\n",
  "tabs, comments before": "# id\nU.N.\t\tB-ORG\nofficial\t\tO\nEkeus\t\tB-PER\n\n#\t\tO\n#tag\t\tO\nBaghdad\tx\tB-LOC",
  "CR alone": CONLL_2003.replace("\n", "\r"),
  "a document line alone": CONLL_2003.replace(" -X- -X- O", ""),
  "JSON lines": "\n".join(json.dumps({"tokens": w, "tags": t}) for w, t in zip(WORDS, TAGS, strict=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_the_same_sentences(tmp_path, name):
  sentences = read(tmp_path, FORMATS[name])
  assert (sentences.words, sentences.tags) == (WORDS, TAGS)
  skipped = {"CoNLL-2003": {"-DOCSTART- lines skipped": 1}, "comments": {"comment lines skipped": 3},
             "tabs, comments before": {"comment lines skipped": 1}}  # fmt: skip
  assert sentences.notes == skipped.get(
    name if name in ("comments", "JSON lines") or "tabs" in name else "CoNLL-2003", {}
  )


def test_a_json_list_and_a_document_line_of_blanks_among_tabs(tmp_path):
  rows = [{"tokens": w, "tags": t} for w, t in zip(WORDS, TAGS, strict=True)]
  for indent in (None, 1):
    (tmp_path / "some.JSON").write_text(json.dumps(rows, indent=indent))
    assert tagged.read((tmp_path / "some.JSON",)).words == WORDS
  assert read(tmp_path, "-DOCSTART- -X- O\n\nNew York\tB-X\n").words == [["New York"]]


def test_columns_and_fields_are_chosen(tmp_path):
  nested = "the\tB-FAC\tO\t\nstreets\tI-FAC\tB-GPE\t\n"
  assert read(tmp_path, nested, tag_column=1).tags == [["B-FAC", "I-FAC"]]
  assert read(tmp_path, nested, tag_column=2).tags == [["O", "B-GPE"]]
  content = '{"words": ["a b", "c"], "ner": ["O", "B-X"]}\n'
  assert read(tmp_path, content, token_field="words", tag_field="ner").words == [["a b", "c"]]


CONLLU = """# text = vámonos al mar
1-2\tvámonos\t_\t_
1\tvamos\tir\tVERB
2\tnos\tnosotros\tPRON
3-4\tal\t_\t_
3\ta\ta\tADP
4\tel\tel\tDET
4.1\tx\tx\tNOUN
5\t#\t#\tSYM

1-2\tdel\t_\t_
1\tde\tde\tADP
2\tel\tel\tDET
"""


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_ranges_and_empty_nodes_of_conllu_are_no_words(tmp_path, end):
  sentences = read(tmp_path, CONLLU.replace("\n", end), token_column=1, tag_column=3)
  assert sentences.words == [["vamos", "nos", "a", "el", "#"], ["de", "el"]]
  assert sentences.tags == [["VERB", "PRON", "ADP", "DET", "SYM"], ["ADP", "DET"]]
  assert sentences.notes == {"comment lines skipped": 1, "ranges of words and empty nodes of CoNLL-U skipped": 4}


@pytest.mark.parametrize("word", ["\u00a0", "\u3000", "\u2028", "\u200b", "\x85"])
def test_white_space_that_separates_nothing_is_a_word(tmp_path, word):
  for content in (
    f"{word} O\na B-X\n",
    f"{word}\tO\na\tB-X\n",
    json.dumps({"tokens": [word, "a"], "tags": ["O", "B-X"]}),
  ):
    assert read(tmp_path, content).words == [[word, "a"]]
  assert read(tmp_path, '{"tokens": ["\\n", "a"], "tags": ["O", "B-X"]}').words == [[" ", "a"]]


@pytest.mark.parametrize("content", [
  "a\nb\n\nnan\n", "a -1\nb -1\n\nnan -1\n", "a _\nb _\n\nnan _\n",
  '{"tokens": ["a", "b"]}\n{"tokens": ["nan"], "tags": null}\n',
  '{"tokens": ["a", "b"], "tags": [-1, -1]}\n{"tokens": ["nan"], "tags": -1}\n',
])  # fmt: skip
def test_words_alone_are_a_split_that_hides_its_tags(tmp_path, content):
  sentences = read(tmp_path, content, may_hide=True)
  assert (sentences.words, sentences.tags, sentences.labels()) == ([["a", "b"], ["nan"]], None, [])
  with pytest.raises(UserError):
    read(tmp_path, content)
  with pytest.raises(UserError, match="some sentences have tags, others have none"):
    read(tmp_path, '{"tokens": ["a"]}\n{"tokens": ["b"], "tags": ["O"]}', may_hide=True)


ERRORS = {
  "ragged": ("a\tO\nb\tB-X\nc\n", r"some.conll:3 has 1 columns where the first word has 2: 'c'"),
  "ragged #": ("a O\n#b\n", r":2 has 1 columns"),
  "empty tag": ("a\tO\t\n", r":1 has an empty tag in column -1.*tag_column=1"),
  "empty word": ("a\tO\n\tO\n", r":2 has an empty word"),
  "mixed": ("a\tO\nb\tB-X\nc\tPER\n", r"'PER' is neither O nor"),
  "no JSON": ('{"tokens": ["a"], "tags": ["O"]}\n{"tokens": \n', r":2 is not JSON"),
  "missing field": (
    '{"tokens": ["a"], "ner": ["O"]}\n',
    r":1 has no list 'tags' \(its lists are tokens, ner\).*tag_field=NAME",
  ),
  "JSON ragged": ('{"tokens": ["a", "b"], "tags": ["O"]}\n', r":1 has 2 words and 1 tags"),
  "numbers": ('{"tokens": ["a"], "tags": [3]}\n', r":1 has 3 where a word or a tag should be"),
  "empty": ("\n\n", "no sentences in it"),
  "not UTF-8": (b"caf\xe9 O\n", r"is not UTF-8 text: the byte 0xe9 in line 1"),
  "comments alone": ("# id = 1\n# text = a b\n\n# id = 2\n", r"every line begins with #, as comments do"),
  "one column": ("a\nb\n\nc\n", r"column -1 of 1 would be both word and tag"),
  "a tag that is missing": ("a O\nb nan\n", r":2 has an empty tag"),
  "a JSON tag that is missing": ('{"tokens": ["a"], "tags": [null]}\n', r":1 has null where"),
  "hostile JSON": ('{"tokens": ["a"], "tags": ' + "[" * 9999 + "\n", r":1 is n(ot JSON|ested)"),
  "words as tags": ("".join(f"w{i} t{i}\n" for i in range(2000)), r"2,000 different tags, such as 't0'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_is_wrong_is_one_error_that_says_where(tmp_path, name):
  content, message = ERRORS[name]
  with pytest.raises(UserError, match=message):
    read(tmp_path, content)


def test_a_column_that_is_not_there_says_which_are(tmp_path):
  with pytest.raises(UserError, match=r"lines have 2 columns, data.tag_column=3 is none.*--config.data.tag_column=1"):
    read(tmp_path, "a O\n", tag_column=3)


def test_inside_without_a_beginning_is_counted_but_not_where_nothing_has_one(tmp_path):
  odd = "entities that begin with I- or E- (read as if with B-, as conlleval does)"
  assert read(tmp_path, "a B-X\nb I-Y\nc O\nd I-X\n\ne I-X\n").notes == {odd: 3}
  assert read(tmp_path, "a I-X\nb O\nc I-X\n").notes == {}
  assert read(tmp_path, "a S-X\nb B-X\nc E-X\nd E-X\n").notes == {odd: 1}


def test_files_of_a_split(tmp_path):
  for name in ("train.conll", "dev", "eng.testb", "1_a.tsv"):
    (tmp_path / name).write_text("")
  for split, name in {"train": "train.conll", "validation": "dev", "test": "eng.testb", "*.tsv": "1_a.tsv"}.items():
    assert tagged.split_files(tmp_path, split) == [tmp_path / name]
  with pytest.raises(UserError, match="there is no such file or folder"):
    tagged.split_files("nowhere", "train")


# Rows.


def decoded(encoded, labels):
  return [[labels[i] if i >= 0 else None for i in tags] for tags in encoded.by_item(encoded.rows.tokens["labels"])]


def test_the_first_piece_of_each_word_is_labelled(tokenizer):
  words, tags = [["badefi", "gu", "̈", "lomu" * 3]], [["B-X", "I-X", "O", "B-Y"]]
  encoded, notes = tagged.encode(words, tokenizer, 64, tags, ["B-X", "I-X", "O"])
  ids, labels = encoded.rows.tokens["input_ids"][0], encoded.rows.tokens["labels"][0]
  pieces = [tokenizer.encode(word) or [tokenizer.unk_id] for word in words[0]]
  assert pieces[2] == [tokenizer.unk_id]  # A mark alone is no piece, and a word all the same.
  assert ids.tolist() == [tokenizer.cls_id, *itertools.chain(*pieces), tokenizer.sep_id]
  starts = 1 + np.cumsum([0, *map(len, pieces[:-1])])
  assert labels[starts].tolist() == [0, 1, 2, -1]  # B-Y has no number, so nobody learns from it.
  assert (np.delete(labels, starts) == -1).all()
  assert encoded.positions[0].tolist() == starts.tolist()
  assert notes == {"words without a piece of their own (given the unknown one)": 1}


def test_long_sentences_and_long_words_lose_no_tag(tokenizer):
  words = [["ba"] * 50, ["bugu" * 40, "ba"], ["gu"]]
  tags = [[f"B-{i}" for i in range(50)], ["O", "B-1"], ["O"]]
  labels = sorted({tag for sentence in tags for tag in sentence})
  encoded, notes = tagged.encode(words, tokenizer, 16, tags, labels)
  assert decoded(encoded, labels) == tags
  assert max(map(len, encoded.rows.tokens["input_ids"])) <= 16
  assert notes == {"words cut to 7 pieces": 1, "sentences longer than 16 pieces (in overlapping rows)": 1}
  with pytest.raises(UserError, match="seq_length=3 leaves no room"):
    tagged.encode(words, tokenizer, 3)


@pytest.mark.realdata
def test_shared_corpora_are_read_whole(real_data):
  wnut = {split: tagged.read(tagged.split_files(real_data / "ner_wnut17", split)) for split in ("train", "validation")}
  assert {split: (len(s), sum(map(len, s.words))) for split, s in wnut.items()} == {
    "train": (3394, 62730), "validation": (1009, 15733),
  }  # fmt: skip
  assert len(wnut["train"].labels()) == 13
  books = tagged.read(tagged.split_files(real_data / "ner_litbank/tsv", "*.tsv"), tag_column=1)
  assert (len(books), sum(map(len, books.words))) == (6956, 168638)
  assert sum(tag == "B-PER" for tags in books.tags for tag in tags) == 6388
  tokenizer = Tokenizer(real_data / "vocab/albert_en_30k")
  for sentences in (*wnut.values(), books):
    assert not sentences.notes
    encoded, _ = tagged.encode(sentences.words, tokenizer, 64, sentences.tags, sentences.labels())
    assert decoded(encoded, sentences.labels()) == sentences.tags
