"""The server: what it answers, what it refuses, how it batches, starts and stops; and its page in a browser."""

import asyncio
import base64
import dataclasses
import functools
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import chromium
import jax
import made_up
import numpy as np
import pytest
from chromium import until
from small_models import SMALL

import albert_jax
from albert_jax.convert import hf
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.errors import UserError
from albert_jax.tasks.base import about

for module in ("starlette", "uvicorn", "pydantic", "prometheus_client", "httpx"):
  pytest.importorskip(module, reason="the server: pip install albert-jax[serve]")

import uvicorn  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402

from albert_jax.commands import serve  # noqa: E402
from albert_jax.serve import app, batching, models, schemas  # noqa: E402
from albert_jax.serve.process import TimedProtocol, listen, run  # noqa: E402
from albert_jax.serve.state import Settings  # noqa: E402

CFG = dataclasses.replace(
  SMALL,
  vocab_size=400,
  embedding_size=32,
  max_position_embeddings=48,
  num_hidden_layers=2,
  hidden_size=36,
  initializer_range=0.2,
)
TEXT = "badu mola gine toro kiki"
EXPORTS = {  # name: (parts, heads, what the export says of itself, class of transformers)
  "masks": (("pooler", "mlm", "sop"), {}, None, None),
  "labels": (
    ("pooler",),
    {"classifier": 3},
    about("classify", ("bad", "good", "odd"), pair=False, seq_length=32),
    None,
  ),
  "pairs": (("pooler",), {"classifier": 2}, about("classify", ("no", "yes"), pair=True, seq_length=32), None),
  "answers": ((), {"span": 2}, about("answer", seq_length=48, max_query_length=8, doc_stride=16), None),
  "tags": ((), {"classifier": 3}, about("tag", ("O", "B-X", "I-X"), seq_length=32), "AlbertForTokenClassification"),
  "choices": (("pooler",), {"classifier": 1}, about("choose", seq_length=32, qa_length=12), None),
  "vectors": ((), {}, about("embed", pooling="mean", seq_length=32), None),
  "words": ((), {}, about("embed", pooling="mean", seq_length=32), None),  # see exports
  "summaries": ((), {"sentence": 1}, about("summarize", seq_length=32), None),
}  # fmt: skip


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
  """Returns {name: path} of an export for each task, with random weights."""
  folder = tmp_path_factory.mktemp("exports")
  vocabulary = Tokenizer(made_up.vocabulary(folder))
  fresh = jax.jit(albert_jax.init, static_argnums=0)(CFG, jax.random.key(1))
  for name, (parts, heads, facts, architecture) in EXPORTS.items():
    unwanted = {"pooler", "mlm", "sop"} - set(parts)
    params = {part: value for part, value in fresh.items() if part not in unwanted}
    for head, classes in heads.items():
      kernel = np.random.default_rng(0).normal(size=(CFG.hidden_size, classes)).astype(np.float32)
      params[head] = {"kernel": kernel, "bias": np.zeros(classes, np.float32)}
    if name == "words":  # Texts are as similar as the words that they share.
      embeddings = params["embeddings"] | {"position": jax.tree.map(np.zeros_like, params["embeddings"]["position"])}
      norms = {part: params[part]["norm"] for part in ("attention", "ffn")}
      params |= jax.tree.map(lambda x: 0.1 * x, {part: params[part] for part in norms})
      params |= {part: params[part] | {"norm": norm} for part, norm in norms.items()} | {"embeddings": embeddings}
    hf.save(folder / name, CFG, params, vocabulary=vocabulary, architecture=architecture, extra=facts)
  return {name: folder / name for name in EXPORTS}


SETTINGS = Settings(host="testserver", warm_up=False, batch_size=4, max_items=8, max_tokens=300, timeout=60)


def served(exports, *names, **settings):
  """Returns (application, list that gets its log records) for some of the exports."""
  loaded = {name: models.Served(name, exports[name], batch_size=4) for name in names}
  records = []
  return app.create(loaded, dataclasses.replace(SETTINGS, **settings), records.append), records


@pytest.fixture(scope="module")
def everything(exports):
  application, records = served(exports, *EXPORTS)
  with TestClient(application) as client:
    wait_until_ready(client)
    client.records = records
    yield client


def wait_until_ready(client):
  for _ in range(6000):
    if client.get("/readyz").status_code == 200:
      return
    time.sleep(0.05)
  raise AssertionError("the server did not become ready")


class TestAnswers:
  @pytest.mark.parametrize(
    ("task", "value"),
    [
      ("fill-mask", "badu [MASK] mola"), ("classify", TEXT), ("answer", {"question": "badu mola", "context": TEXT}),
      ("tag", TEXT), ("choose", {"context": TEXT, "options": ["badu", "mola gine"]}), ("embed", TEXT),
      ("summarize", {"sentences": ["Badu mola.", "Gine toro."]}),
    ],
  )  # fmt: skip
  def test_every_task_answers_as_the_pipeline_does(self, everything, exports, task, value):
    answer = everything.post(f"/v1/{task}", json={"inputs": [value, value]}).json()
    expected = albert_jax.pipeline(task, exports[answer["model"]])([value, value])
    assert_close(answer["results"], expected)
    alone = everything.post(f"/v1/{task}", json={"inputs": value}).json()
    assert_close(alone["results"], expected[:1])

  def test_the_model_is_chosen_by_name(self, everything):
    body = {"model": "pairs", "inputs": {"text": "badu", "pair": "mola"}}
    assert set(everything.post("/v1/classify", json=body).json()["results"][0]["scores"]) == {"no", "yes"}

  def test_top_k(self, everything):
    answer = everything.post("/v1/fill-mask", json={"inputs": "badu [MASK]", "top_k": 3}).json()
    assert len(answer["results"][0]["masks"][0]) == 3

  def test_models_say_what_they_are_for(self, everything):
    listed = {model["id"]: model for model in everything.get("/v1/models").json()["data"]}
    assert listed["masks"]["tasks"] == ["fill-mask", "embed"]
    assert listed["labels"]["labels"] == ["bad", "good", "odd"]
    assert (listed["pairs"]["pairs"], listed["labels"]["pairs"]) == (True, False)

  def test_openai_embeddings(self, everything, exports):
    body = {"model": "vectors", "input": ["badu", "mola gine"]}
    answer = everything.post("/v1/embeddings", json=body).json()
    expected = [x["embedding"] for x in albert_jax.pipeline("embed", exports["vectors"])(body["input"])]
    assert [x["index"] for x in answer["data"]] == [0, 1]
    np.testing.assert_allclose([x["embedding"] for x in answer["data"]], expected, atol=1e-5)
    assert answer["usage"]["prompt_tokens"] >= 2
    packed = everything.post("/v1/embeddings", json=body | {"encoding_format": "base64"}).json()["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(packed), "<f4"), expected[0], atol=1e-5)

  def test_text_embeddings_inference(self, everything):
    vectors = everything.post("/embed", json={"inputs": ["badu", "mola"], "normalize": True}).json()
    assert [np.linalg.norm(vector) for vector in vectors] == pytest.approx([1, 1], abs=1e-5)
    single = everything.post("/predict", json={"inputs": TEXT, "parameters": {}}).json()
    assert {x["label"] for x in single} == {"bad", "good", "odd"}
    several = everything.post("/predict", json={"inputs": [[TEXT], ["badu"]]}).json()
    assert [x["score"] for x in several[0]] == pytest.approx([x["score"] for x in single], abs=1e-5)

  def test_a_long_text_is_cut_only_on_request(self, everything):
    body = {"inputs": " ".join([TEXT] * 10), "model": "labels"}
    refused = everything.post("/v1/classify", json=body)
    assert refused.status_code == 413
    assert re.search(r"has \d+ tokens; the model 'labels' takes 32", refused.json()["error"])
    assert everything.post("/v1/classify", json=body | {"truncate": True}).status_code == 200
    # What is cut does not count.
    body["inputs"] = " ".join([TEXT] * 100)
    assert everything.post("/v1/classify", json=body | {"truncate": True}).status_code == 200
    assert everything.records[-1]["tokens"] == 30


def assert_close(ours, theirs):
  if isinstance(theirs, float):
    assert ours == pytest.approx(theirs, abs=1e-4)
  elif isinstance(theirs, dict | list):
    assert len(ours) == len(theirs)
    for key in theirs if isinstance(theirs, dict) else range(len(theirs)):
      assert_close(ours[key], theirs[key])
  else:
    assert ours == theirs


class TestRefusals:
  @pytest.mark.parametrize(
    ("path", "body", "status", "part"),
    [
      ("/v1/embed", '{"inputs":', 400, "not JSON"),
      ("/v1/embed", '{"inputs": 3}', 422, "must be a text"),
      ("/v1/embed", '{"inputs": []}', 422, "not an empty one"),
      ("/v1/embed", "{}", 422, "'inputs' is missing"),
      ("/v1/embed", '{"inputs": "a", "path": "/etc/passwd"}', 422, "no field 'path'"),
      ("/v1/embed", '{"inputs": "a", "model": "../../etc"}', 404, "there are: masks, vectors, words"),
      ("/v1/embed", '{"inputs": "a", "model": "labels"}', 404, "'labels' is not for embed"),
      ("/v1/embed", '{"inputs": "\\ud800"}', 400, "not JSON"),
      ("/v1/embed", json.dumps({"inputs": ["a"] * 9}), 413, "has 9 items, more than the 8"),
      ("/v1/embed", json.dumps({"inputs": "a" * (1 << 20)}), 413, "larger than 1,048,576 bytes"),
      ("/v1/tag", json.dumps({"inputs": "badu mola " * 200}), 413, "this server takes 300"),
      ("/v1/fill-mask", '{"inputs": "badu"}', 422, "[MASK]"),
      ("/v1/fill-mask", json.dumps({"inputs": "[MASK] " * 9}), 422, "the most is 8"),
      ("/v1/fill-mask", json.dumps({"inputs": "[MASK]" + " badu" * 99}), 413, "takes 48; shorten it"),
      ("/v1/fill-mask", '{"inputs": "[MASK]", "top_k": 0}', 422, "'top_k'"),
      ("/v1/classify", '{"inputs": "a", "model": "pairs"}', 422, "for pairs of texts"),
      ("/v1/classify", '{"inputs": {"text": "a", "pair": "b"}}', 422, "for single texts"),
      ("/v1/choose", '{"inputs": {"context": "a", "options": ["b"]}}', 422, "2 to 8 texts"),
      ("/v1/answer", '{"inputs": {"question": "a"}}', 422, "context"),
      ("/embed", '{"inputs": "a", "normalize": false}', 422, "'normalize'"),
      ("/nothing", "{}", 404, "no such path"),
    ],
  )  # fmt: skip
  def test_every_mistake_gets_one_sentence(self, everything, path, body, status, part):
    answer = everything.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "error_type"}
    assert part in answer.json()["error"]
    assert "\n" not in answer.json()["error"]

  def test_errors_for_clients_of_openai_have_their_shape(self, everything):
    answer = everything.post("/v1/embeddings", json={"input": "a", "model": "nothing"})
    assert answer.status_code == 404
    assert answer.json()["error"]["message"].startswith("there is no model 'nothing' for embed; there are: masks")

  def test_a_body_that_stops_halfway(self, exports):
    """The client gets 503 after the time limit; one that leaves instead is a line in the log."""
    application, records = served(exports, "labels", timeout=0.3)

    async def scenario():
      scope = {"type": "http", "method": "POST", "path": "/v1/classify", "raw_path": b"", "query_string": b"",
               "headers": [(b"content-type", b"application/json")], "http_version": "1.1"}  # fmt: skip
      messages = iter([{"type": "http.request", "body": b'{"inp', "more_body": True}])
      answers = []

      async def receive():
        return next(messages, None) or await asyncio.sleep(9)

      async def send(message):
        answers.append(message)

      await application(dict(scope), receive, send)
      messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
      await application(dict(scope), receive, send)
      return answers

    answers = asyncio.run(scenario())
    assert answers[0]["status"] == 503
    assert [record["status"] for record in records] == [503, 499]

  def test_what_a_client_asked_that_left_is_not_run(self, exports):
    application, records = served(exports, "labels", window=0.2)
    state, ran = application.state.server, []
    state.models["labels"].tasks["classify"].run = ran.extend
    state.ready = True

    async def scenario():
      state.batcher.start()
      scope = {"type": "http", "method": "POST", "path": "/v1/classify", "raw_path": b"", "query_string": b"",
               "headers": [(b"content-type", b"application/json")], "http_version": "1.1"}  # fmt: skip
      messages = iter([{"type": "http.request", "body": json.dumps({"inputs": TEXT}).encode()}])

      async def receive():
        return next(messages, {"type": "http.disconnect"})

      async def send(message):
        raise AssertionError("nobody is there")

      await application(scope, receive, send)
      await asyncio.sleep(0.4)
      await state.batcher.stop()

    asyncio.run(scenario())
    assert (ran, state.batcher.waiting) == ([], 0)
    assert records[-1]["status"] == 499

  def test_methods_and_content_types(self, everything):
    wrong = everything.put("/v1/embed", json={})
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    # What a form of a foreign page can send without asking.
    assert everything.post("/v1/embed", content='{"inputs": "a"}').status_code == 415
    squeezed = everything.post("/v1/embed", json={"inputs": "a"}, headers={"Content-Encoding": "gzip"})
    assert (squeezed.status_code, "not with Content-Encoding: gzip" in squeezed.json()["error"]) == (415, True)

  def test_one_bad_text_fails_no_other_client(self):
    def function(items):
      if "bad" in items:
        raise UserError("bad")
      return [item.upper() for item in items]

    assert [str(x) for x in batching._run(function, ["a", "bad", "c", "d"])] == ["A", "bad", "C", "D"]

  def test_a_fault_is_a_500_and_the_log_names_the_place_without_the_text(self, exports):
    application, records = served(exports, "labels")
    with TestClient(application, raise_server_exceptions=False) as client:
      wait_until_ready(client)

      def fail(items):
        raise RuntimeError(f"about {items}")

      application.state.server.models["labels"].tasks["classify"].run = fail
      answer = client.post("/v1/classify", json={"inputs": "secret badu"})
      assert (answer.status_code, answer.json()["error_type"]) == (500, "internal")
      assert "secret" not in answer.text
      assert client.get("/healthz").status_code == 200
    assert "secret" not in json.dumps(records)
    assert records[-1]["fault"].startswith("RuntimeError at test_serve.py")

  def test_a_full_queue_and_a_slow_model_are_503(self, exports):
    application, _ = served(exports, "labels", max_queue=3, timeout=0.2)
    release = threading.Event()
    with TestClient(application) as client:
      wait_until_ready(client)
      application.state.server.models["labels"].tasks["classify"].run = lambda items: (
        release.wait(5) and [{}] * len(items)
      )
      slow = client.post("/v1/classify", json={"inputs": TEXT})
      assert (slow.status_code, slow.headers["retry-after"]) == (503, "1")
      assert "no answer within 0.2 seconds" in slow.json()["error"]
      full = client.post("/v1/classify", json={"inputs": [TEXT] * 4})
      assert (full.status_code, full.json()["error"]) == (503, "the queue is full; try again in a second")
      release.set()

  def test_a_loopback_server_answers_no_foreign_name(self, exports):
    application, _ = served(exports, "labels", host="127.0.0.1")
    with TestClient(application) as client:
      assert client.get("/healthz", headers={"Host": "attacker.example"}).status_code == 403
      assert client.get("/healthz", headers={"Host": "localhost:8000"}).status_code == 200

  def test_cross_origin_requests_are_off_unless_asked_for(self, everything, exports):
    origin = {"Origin": "https://a.example"}
    assert "access-control-allow-origin" not in everything.get("/healthz", headers=origin).headers
    application, _ = served(exports, "labels", cors=("https://a.example",))
    with TestClient(application) as client:
      assert client.get("/healthz", headers=origin).headers["access-control-allow-origin"] == "https://a.example"


class TestOperation:
  def test_logs_have_counts_and_no_texts(self, everything):
    everything.records.clear()
    everything.post("/v1/classify", json={"inputs": ["badu secret", "mola"], "model": "labels"})
    everything.post("/v1/fill-mask", json={"inputs": "badu secret"})
    everything.get("/healthz")
    first, second = everything.records
    assert {"event", "id", "method", "route", "status", "ms", "model", "items", "tokens", "task"} == set(first)
    assert (first["route"], first["status"], first["items"]) == ("/v1/classify", 200, 2)
    assert second["status"] == 422
    assert "secret" not in json.dumps(everything.records)

  def test_metrics(self, everything):
    everything.post("/v1/embed", json={"inputs": ["badu", "mola"], "model": "vectors"})
    everything.get("/no/such/path")
    lines = everything.get("/metrics").text.splitlines()
    values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}
    assert values['albert_jax_items_total{model="vectors",task="embed"}'] >= 2
    assert values['albert_jax_requests_total{model="",route="other",status="404"}'] >= 1
    assert values["albert_jax_queue_items"] == 0
    assert values["albert_jax_ready"] == 1
    assert not any("/no/such/path" in name for name in values)

  def test_the_document_names_only_what_there_is(self, exports):
    application, _ = served(exports, "labels")
    document = TestClient(application).get("/openapi.json").json()
    assert set(document["paths"]) == {"/v1/models", "/healthz", "/readyz", "/metrics", "/v1/classify", "/predict"}
    body = document["paths"]["/v1/classify"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["model"]["anyOf"][0]["enum"] == ["labels"]

  def test_ordinary_requests_compile_nothing_after_the_warm_up(self, exports, monkeypatch):
    monkeypatch.setattr(app, "PROGRESS_SECONDS", 0)
    application, records = served(exports, "labels", warm_up=True)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
      lambda name, seconds, **_: compiled.append(name) if "backend_compile" in name else None
    )
    with TestClient(application) as client:
      assert client.post("/v1/classify", json={"inputs": TEXT}).status_code == 503
      assert "the server compiles its programs: " in client.get("/readyz").text
      wait_until_ready(client)
      [ready] = [record for record in records if record["event"] == "ready"]
      assert ready["programs"] == 8  # lengths 8, 16, 24, 32 by rows 4, 1
      progress = [record["compiled"] for record in records if record["event"] == "compiling"]
      assert progress == list(range(1, 9))
      before = len(compiled)
      for count in range(1, 8):
        for words in (1, 3, 6):
          body = {"inputs": [" ".join(["badu mola"] * words)] * count, "truncate": True}
          assert client.post("/v1/classify", json=body).status_code == 200
      assert len(compiled) == before

  def test_names_of_checkpoints(self, tmp_path):
    assert models.parse(["runs/sst/export", "b=/x/y", "z/"]) == {"sst": "runs/sst/export", "b": "/x/y", "z": "z/"}
    with pytest.raises(UserError, match=r"two checkpoints are named 'y'; name one: --checkpoint=NAME=other/y"):
      models.parse(["/x/y", "other/y"])


class TestBatches:
  """The batcher alone, with functions instead of models."""

  @staticmethod
  def run(scenario, **arguments):
    async def main():
      batcher = batching.Batcher(**{"size": 4, "window": 0.05, "limit": 100} | arguments)
      batcher.start()
      try:
        return await scenario(batcher)
      finally:
        await batcher.stop()

    return asyncio.run(main())

  def test_clients_that_wait_together_run_together(self):
    batches = []

    def double(items):
      batches.append(len(items))
      return [2 * item for item in items]

    async def scenario(batcher):
      return await asyncio.gather(*(batcher.submit("a", double, [i, i + 100]) for i in range(4)))

    assert self.run(scenario) == [[2 * i, 2 * i + 200] for i in range(4)]
    assert batches == [4, 4]

  def test_other_models_do_not_mix_and_do_not_starve(self):
    order = []

    def note(name):
      def function(items):
        order.append((name, len(items)))
        time.sleep(0.01)
        return items

      return function

    async def scenario(batcher):
      first = [asyncio.create_task(batcher.submit("a", note("a"), [0] * 8))]
      await asyncio.sleep(0)
      second = asyncio.create_task(batcher.submit("b", note("b"), [0]))
      await asyncio.sleep(0)
      first.append(asyncio.create_task(batcher.submit("a", note("a"), [0] * 4)))
      await asyncio.gather(*first, second)

    self.run(scenario)
    assert order == [("a", 4), ("a", 4), ("b", 1), ("a", 4)]

  def test_a_request_that_was_given_up_is_not_run(self):
    ran = []

    async def scenario(batcher):
      gone = asyncio.create_task(batcher.submit("a", lambda items: ran.extend(items) or items, ["gone"]))
      await asyncio.sleep(0)
      gone.cancel()
      await batcher.submit("a", lambda items: ran.extend(items) or items, ["here"])
      return batcher.waiting

    assert self.run(scenario) == 0
    assert ran == ["here"]

  def test_no_item_waits_longer_than_the_window_for_company(self):
    async def scenario(batcher):
      started = time.monotonic()
      await batcher.submit("a", lambda items: items, [1])
      return time.monotonic() - started

    assert 0.04 < self.run(scenario) < 30


@pytest.fixture
def process(exports, tmp_path):
  """A function that starts a server in a process of its own: returns (process, its address); process.log is a file."""
  started = []

  def start(*names, paths=exports, **settings):
    code = (
      "import json, sys; from albert_jax.serve import process, state\n"
      "process.run(json.loads(sys.argv[1]), state.Settings(**json.loads(sys.argv[2])))"
    )
    paths = json.dumps({name: str(paths[name]) for name in names})
    options = json.dumps({"port": 0, "warm_up": False, "batch_size": 4} | settings)
    log = tmp_path / f"log{len(started)}"  # A pipe that nobody reads would fill up and stop the server.
    with log.open("w") as file:
      child = subprocess.Popen(
        [sys.executable, "-c", code, paths, options], stdout=subprocess.PIPE, stderr=file, text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
      )  # fmt: skip
    child.log = log
    started.append(child)
    line = child.stdout.readline()
    assert line.startswith("http://127.0.0.1:"), log.read_text()
    address = line.split()[0]
    for _ in range(6000):
      try:
        if json.loads(urllib.request.urlopen(f"{address}readyz", timeout=5).read())["status"] == "ready":
          break
      except (urllib.error.URLError, ConnectionError):
        time.sleep(0.05)
    return child, address

  yield start
  for child in started:
    child.kill()
    child.communicate()


def ask(address, path, body):
  request = urllib.request.Request(address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
  with urllib.request.urlopen(request, timeout=300) as answer:
    return json.load(answer)


@pytest.mark.slow
def test_sigterm_answers_what_was_accepted_and_exits_with_0(process):
  child, address = process("labels", window=6.0, drain=0.3, batch_size=8)
  results = []
  threads = [
    threading.Thread(target=lambda: results.append(ask(address, "v1/classify", {"inputs": [TEXT] * 2})))
    for _ in range(3)
  ]
  for thread in threads:
    thread.start()
  until(lambda: b"albert_jax_queue_items 6.0" in urllib.request.urlopen(f"{address}metrics", timeout=300).read())
  child.send_signal(signal.SIGTERM)
  for thread in threads:
    thread.join()
  assert child.wait(300) == 0
  log = child.log.read_text()
  assert [len(result["results"]) for result in results] == [2, 2, 2]
  events = [json.loads(line)["event"] for line in log.splitlines()]
  assert (events[-1], events.count("draining")) == ("stopped", 1)
  assert TEXT not in log


@pytest.mark.slow
def test_a_client_that_sends_far_too_much_reads_why(process):
  _, address = process("labels")
  with pytest.raises(urllib.error.HTTPError) as refused:
    ask(address, "v1/classify", {"inputs": "badu " * 2_000_000})
  assert refused.value.code == 413
  assert "larger than 1,048,576 bytes" in json.load(refused.value)["error"]


@pytest.mark.slow
def test_a_second_server_takes_over_the_port(process):
  first, address = process("labels", reuse_port=True)
  second, same = process("labels", reuse_port=True, port=int(address.rstrip("/").rsplit(":", 1)[1]))
  assert same == address
  first.send_signal(signal.SIGTERM)
  assert first.wait(300) == 0
  assert len(ask(address, "v1/classify", {"inputs": TEXT})["results"]) == 1
  assert second.poll() is None


def test_a_connection_without_a_complete_head_of_a_request_is_closed():
  async def ok(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})

  async def closed(start):
    """Sends a start; returns what is answered until the server closes the connection."""
    config = uvicorn.Config(ok, log_config=None)
    config.load()
    protocol = type("Protocol", (TimedProtocol,), {"seconds": 0.1})
    make = functools.partial(protocol, config=config, server_state=uvicorn.server.ServerState(), app_state={})
    async with await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0) as server:
      reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
      writer.write(start)
      answer = await asyncio.wait_for(reader.read(), 30)
      writer.close()
      return answer

  request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
  assert asyncio.run(closed(b"")) == asyncio.run(closed(b"GET / HT")) == b""
  assert asyncio.run(closed(request + b"GET / HT")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("reuse_port", [False, True])
def test_a_model_that_cannot_run_stops_the_server(exports, monkeypatch, capsys, reuse_port):
  def fails():
    raise UserError("the file is another model's")

  monkeypatch.setattr(models.Served, "warm_up", lambda self, size: iter([fails]))
  with pytest.raises(UserError, match="another model's"):
    run({"labels": exports["labels"]}, Settings(port=0, reuse_port=reuse_port))
  assert bool(capsys.readouterr().out) != reuse_port  # The address is not printed.


def test_a_task_without_a_path_is_refused(exports, monkeypatch):
  monkeypatch.delitem(schemas.ITEMS, "classify")
  with pytest.raises(UserError, match="is for classify, which the server has no path for; it has fill-mask"):
    models.Served("labels", exports["labels"], batch_size=4)


def test_a_port_in_use_is_one_line():
  with socket.create_server(("127.0.0.1", 0)) as sock:
    port = sock.getsockname()[1]
    with pytest.raises(UserError, match=rf"cannot listen on 127.0.0.1:{port} \(Address already in use\); give another"):
      listen(Settings(port=port))


@pytest.mark.slow
def test_the_document_is_true(process, tmp_path):
  """Schemathesis sends what the document allows and what it forbids, and compares every answer with it."""
  pytest.importorskip("schemathesis", reason="the document against the server: pip install schemathesis")
  _, address = process("masks", "labels", "answers")
  # A body that is too large in any way is 413, which is not among the statuses that it expects by itself.
  rejections = "[400, 404, 405, 413, 415, 422]"
  (tmp_path / "schemathesis.toml").write_text(f"[checks.negative_data_rejection]\nexpected-statuses = {rejections}\n")
  command = ["run", f"{address}openapi.json", "--max-examples=2", "--seed=1", "--phases=coverage,fuzzing"]
  result = subprocess.run(
    [sys.executable, "-m", "schemathesis.cli", *command, "--request-timeout=60", "--no-color"],
    cwd=tmp_path, capture_output=True, text=True,
  )  # fmt: skip
  assert result.returncode == 0, result.stdout[-4000:]


class TestCommand:
  def test_a_missing_library_names_the_extra(self, monkeypatch):
    monkeypatch.setattr(serve, "EXTRA", ("starlette", "not_there"))
    with pytest.raises(
      UserError, match=r"not_there is not installed; the server needs: pip install 'albert-jax\[serve\]'"
    ):
      serve.main(["--checkpoint=x"])

  @pytest.mark.parametrize(
    ("flags", "message"),
    [
      (["--checkpoint=/nothing/there"], "nothing at '/nothing/there'; expected a Hugging Face directory"),
      (["--checkpoint=a", "--window=-1"], "--window=-1.0 must be 0 or more"),
      (["--checkpoint=a", "--max_queue=0"], "--max_queue=0 must be more than 0"),
      (["--checkpoint=a", "--max_queue=9"], "--max_items=256 must be at most --max_queue=9"),
      (["--checkpoint=a", "--timeout=nan"], "--timeout=nan must be more than 0"),
      (["--checkpoint=a", "--port=70000"], "--port=70000 must be from 0 to 65535"),
      (["--checkpoint=a", "--cors=example.org"], "--cors=example.org is no origin"),
      (["--checkpoint=a", "--dtype=int8"], "--dtype=int8 does not go with --backend=jax; use --backend=onnx"),
      (["--checkpoint=a", "--checkpoint=b/a"], "two checkpoints are named 'a'"),
    ],
  )
  def test_every_mistake_is_one_line(self, flags, message):
    with pytest.raises(UserError, match=f"^{re.escape(message)}") as error:
      serve.main([*flags] if any("--port" in flag for flag in flags) else [*flags, "--port=0"])
    assert "\n" not in str(error.value)

  def test_flags_become_settings(self, monkeypatch):
    called = []
    monkeypatch.setattr("albert_jax.serve.process.run", lambda *arguments: called.append(arguments))
    serve.main(["--checkpoint=x=/a/b", "--window=0.01", "--no_page", "--cors=https://a.example", "--dtype=bfloat16"])
    [(checkpoints, settings, backend, dtype)] = called
    assert (checkpoints, backend, dtype) == ({"x": "/a/b"}, "jax", "bfloat16")
    assert settings == Settings(window=0.01, page=False, cors=("https://a.example",))


@pytest.fixture
def browser():
  """A headless Chromium of a given width: browser(width, dark)."""
  with chromium.windows() as start:
    yield start


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_the_page(process, browser):
  _, address = process("masks", "labels", "answers", "tags", "words")
  window = browser()
  window.get(address)

  def all_of(selector):
    return window.find_elements("css selector", selector)

  def texts(selector):
    return chromium.texts(window, selector)

  def write(id, text):
    box = until(lambda: all_of(f"#{id}"))[0]
    box.clear()
    box.send_keys(text)

  assert until(lambda: texts("[role=tab]")) == [
    "Fill a mask", "Classify", "Answer a question", "Find entities", "Similar sentences", "Ask the FAQ",
  ]  # fmt: skip
  # A candidate is put where the mask was.
  write("mask-text", "badu [MASK] mola")
  word = until(lambda: len(texts("#mask-out .row span")) == 12 and texts("#mask-out .row span")[0])
  all_of("#mask-out button.row")[0].click()
  assert window.find_element("id", "mask-text").get_property("value") == f"badu {word} mola"

  # Arrow keys go from tab to tab.
  all_of("[role=tab]")[0].send_keys("\ue014")
  assert window.switch_to.active_element.text == "Classify"
  write("classify-text", TEXT)
  until(lambda: texts("#words .word") == TEXT.split())
  assert {text.split()[0] for text in texts("#classify-out .row > span:first-of-type")} == {"bad", "good", "odd"}

  window.find_element("id", "tab-answer").click()
  write("question", "badu mola")
  write("context", "😀 " + TEXT)
  until(lambda: texts("#answer-out .row > span:first-of-type"))
  until(lambda: texts("#passage mark") and "".join(texts("#passage")) == "😀 " + TEXT)
  all_of("#answer-out button.row")[0].click()
  assert texts("#passage mark")[0] == texts("#answer-out .row > span:first-of-type")[0]

  window.find_element("id", "tab-tag").click()
  write("tag-text", TEXT)
  until(lambda: texts("#tag-out .entity small"))
  assert set(texts("#tag-out .entity small")) == {"X"}

  window.find_element("id", "tab-similar").click()
  write("sentences", "gine toro\nbadu mola\nkiki")
  write("query", "badu mola")
  until(lambda: texts("#similar-out .row span")[:2] == ["badu mola", "1.000"])

  window.find_element("id", "tab-faq").click()
  all_of("#faq summary")[0].click()
  write("faq-list", "badu mola? | One.\ngine toro kiki? | Two.\npete rigo? | Three.")
  until(lambda: texts("#faq .status") == ["3 questions"])
  for question, answer in (("gine toro kiki", "Two."), ("sasa fefe lulu", "I do not know."), ("badu mola?", "One.")):
    box = window.find_element("id", "faq-text")
    box.send_keys(question + "\n")
    until(lambda answer=answer: texts("#chat .say")[-1].startswith(answer))
  assert len(texts("#chat .say.mine")) == 3

  # The examples that the page begins with are longer than these models, which is said on it.
  assert [line for line in window.get_log("browser") if " 413 " not in line["message"]] == []
  assert [url for url in chromium.requests(window) if not url.startswith((address, "data:"))] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_the_page_orders_labels_that_are_numbers_and_marks_what_is_outdated(process, browser, exports, tmp_path):
  folder = tmp_path / "stars"
  shutil.copytree(exports["labels"], folder)
  config = (folder / "config.json").read_text("utf-8")
  for i, label in enumerate(("bad", "good", "odd")):
    config = config.replace(f'"{label}"', f'"{i}"')
  (folder / "config.json").write_text(config, "utf-8")
  texts = [" ".join(words) for words in itertools.permutations(TEXT.split(), 2)]
  text, result = next(
    (text, result)
    for text, result in zip(texts, albert_jax.pipeline("classify", folder)(texts), strict=True)
    if list(result["scores"]) != sorted(result["scores"])
  )
  _, address = process("stars", paths={"stars": folder})
  window = browser()
  window.get(address)
  until(lambda: window.find_elements("css selector", "[role=tab]"))

  def write(text):
    box = window.find_element("id", "classify-text")
    box.clear()
    box.send_keys(text)

  write(text)
  until(lambda: chromium.texts(window, "#words .word") == text.split())
  assert chromium.texts(window, "#classify-out .row > span:first-of-type") == list(result["scores"])
  assert chromium.texts(window, "#words-title") == [f"What speaks for “{result['label']}”"]
  assert re.search(r"Answered in \d+ ms", chromium.texts(window, "#classify .status")[0])
  write(" ".join([TEXT] * 10))
  until(lambda: "takes 32" in chromium.texts(window, "#classify .status")[0])
  assert window.find_elements("css selector", "#classify[data-outdated]")
  write(text)
  until(lambda: not window.find_elements("css selector", "#classify[data-outdated]"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_the_page_on_a_phone_and_in_the_dark(process, browser):
  _, address = process("masks", "labels", "answers", "tags", "words")
  window = browser(width=360, dark=True)
  window.get(address)
  for tab in until(lambda: window.find_elements("css selector", "[role=tab]")):
    tab.click()
    assert window.execute_script("return document.documentElement.scrollWidth") == 360
  background = "return getComputedStyle(document.documentElement).backgroundColor"
  dark = window.execute_script(background)
  window.find_element("id", "theme").click()
  light = window.execute_script(background)
  assert sum(map(int, re.findall(r"\d+", dark))) < 150 < 600 < sum(map(int, re.findall(r"\d+", light)))
