"""The page of an export: the same answers in the browser, without a server and without network."""

import functools
import http.server
import pathlib
import shutil
import subprocess
import threading

import chromium
import made_up
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from test_exports_folder import CASES, INPUTS, assert_alike, checkpoint

import albert_jax
from albert_jax.errors import UserError
from albert_jax.exports import page

SHOWN = {name: CASES[name] for name in ("pretrained", "classify", "tag", "answer", "embed")}
TASK = {"pretrained": "fill-mask"}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  return made_up.vocabulary(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def runtime_files():
  """Fetches what the page runs on, or skips."""
  if not shutil.which("npm"):
    pytest.skip("the page of an export: npm is not installed")
  try:
    return page.fetch()
  except UserError as error:
    pytest.skip(f"the page of an export: {error}")


class Quiet(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *_):
    pass


@pytest.fixture(scope="module")
def site(tmp_path_factory, vocabulary, runtime_files):
  """A static file server of one page for each task: (its address, {name: the exported folder})."""
  root, exports = tmp_path_factory.mktemp("site"), {}
  for name, case in SHOWN.items():
    source = checkpoint(root / "runs" / name, vocabulary, **case)
    exports[name] = root / "exports" / name
    report = albert_jax.export(source, exports[name], formats=("onnx",), page=root / name)
    assert {"index.html", "page.mjs", "model.onnx", "tokenizer.json"} <= report["page"].keys()
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=root)) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", exports
    server.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_the_browser_answers_as_python_does(site):
  address, exports = site
  ask = """
    const [task, body, done] = arguments;
    import("./page.mjs").then(model => model.post(task, body)).then(done, error => done(String(error)));
  """
  with chromium.windows() as start:
    window = start()
    window.set_script_timeout(60)
    for name, folder in exports.items():
      window.get(f"{address}/{name}/")
      chromium.until(lambda: chromium.texts(window, "[role=tab]"))
      task = TASK.get(name, name)
      inputs = INPUTS[name]
      answers = window.execute_async_script(ask, task, {"inputs": inputs, "truncate": True})
      assert not isinstance(answers, str), answers
      expected = albert_jax.pipeline(task, folder, backend="onnx")(inputs)
      for answer, reference in zip(answers, expected, strict=True):
        assert_alike(answer, {key: reference[key] for key in answer})
    assert [url for url in chromium.requests(window) if not url.startswith((address, "data:"))] == []
    # As a reader of the page does it: the classifier's tab, from its own form.
    window.get(f"{address}/classify/")
    assert chromium.until(lambda: chromium.texts(window, "[role=tab]")) == ["Classify"]
    box = window.find_element("id", "classify-text")
    box.clear()
    box.send_keys("ba do gi.")
    chromium.until(lambda: chromium.texts(window, "#words .word") == ["ba", "do", "gi."])
    assert window.get_log("browser") == []


def test_mistakes_are_one_line_and_leave_nothing(tmp_path, vocabulary, monkeypatch):
  source = checkpoint(tmp_path / "run", vocabulary, **CASES["choose"])
  monkeypatch.setattr(page, "fetch", lambda: tmp_path / "absent")
  (tmp_path / "taken").mkdir()
  (tmp_path / "taken" / "notes.txt").touch()
  for words, options in {
    "add onnx to --formats": {"formats": (), "page": tmp_path / "page"},
    "exists already": {"page": tmp_path / "taken"},
    "out is or contains --out": {"page": tmp_path / "out"},
  }.items():
    with pytest.raises(UserError, match=words):
      albert_jax.export(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
  with pytest.raises(UserError, match="site is or contains --out"):
    albert_jax.export(source, tmp_path / "site" / "out", page=tmp_path / "site")
  words = tmp_path / "vocab.txt"
  words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]) + "\n")
  chinese = checkpoint(tmp_path / "chinese", words, **CASES["classify"])
  for model, what in ((source, "has no tab for choose"), (chinese, "vocab.txt cannot; leave --page out")):
    with pytest.raises(UserError, match=what):  # Before anything is written.
      albert_jax.export(model, tmp_path / "out", page=tmp_path / "page")
    assert not (tmp_path / "out").exists()
  assert not (tmp_path / "page").exists()


@pytest.mark.parametrize(("seq_length", "most", "question"), [(None, 64, 32), (48, 48, 24), (40, 40, 12)])
def test_a_question_leaves_room_for_its_passage(tmp_path, vocabulary, seq_length, most, question):
  facts = {"seq_length": seq_length} if seq_length else {}
  facts |= {"max_query_length": 12} if seq_length == 40 else {}
  checkpoint(tmp_path / "run", vocabulary, **CASES["answer"], **facts)
  described = page.describe(tmp_path / "run", "x")
  assert (described["max_tokens"], described["answer"]["max_query_length"]) == (most, question)


@pytest.mark.parametrize(
  ("outcome", "words"),
  [
    (FileNotFoundError(), "npm is not installed"),
    (subprocess.TimeoutExpired("npm", 300), "did not fetch"),
    (subprocess.CompletedProcess((), 1, "", "npm error network\nmore"), r"could not fetch .*\(npm error network\)"),
  ],
)
def test_npm_that_fails_is_one_line(monkeypatch, tmp_path, outcome, words):
  def run(*_, **__):
    if isinstance(outcome, Exception):
      raise outcome
    return outcome

  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setattr(page.subprocess, "run", run)
  with pytest.raises(UserError, match=words) as error:
    page.fetch()
  assert "\n" not in str(error.value)
  assert not list(pathlib.Path(tmp_path).rglob("*.mjs"))
