"""The folder of a run: its config, its card, and fingerprints."""

import fcntl
import json
import pathlib

import fsspec
import pytest
from ml_collections import ConfigDict

from albert_jax import UserError
from albert_jax.training import goodput, workdir


def config(**values):
  return ConfigDict({"steps": 5, "hours": 0.0, "data": {"dataset": ""}, "model": {"hidden_size": 8}, **values})


NONE = {"dataset": {}, "vocabulary": ""}


def check(config, folder, fingerprints=NONE):
  workdir.check_same_run(config, fingerprints, folder)


def test_a_folder_in_use_is_refused(tmp_path):
  with open(tmp_path / ".lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="in use by another run"), workdir.lock(tmp_path):
      pass
  with workdir.lock(tmp_path):
    pass


def test_the_same_run_may_be_longer_but_not_another_one(tmp_path):
  check(config(), tmp_path)
  check(config(model={"hidden_size": 16}), tmp_path)  # Nothing was trained yet.
  (tmp_path / "checkpoints" / "2").mkdir(parents=True)
  check(config(steps=9, model={"hidden_size": 16}), tmp_path)
  assert json.loads((tmp_path / "config.json").read_text())["steps"] == 9
  with pytest.raises(UserError, match=r"model\.hidden_size: 16 there, 8 here"):
    check(config(), tmp_path)
  with pytest.raises(UserError, match=r"best: .* there, .*f1.* here"):
    check(config(steps=9, best="f1", model={"hidden_size": 16}), tmp_path)


def test_the_folder_of_a_model_is_refused(tmp_path):
  text = '{"model_type": "albert", "hidden_size": 8}'
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(UserError, match=r"config\.json is not of a run, and the run would replace it; give another"):
    check(config(), tmp_path)
  assert (tmp_path / "config.json").read_text() == text


def test_hours_are_looked_up(tmp_path):
  hours_config = config(hours=2.0, steps=77)
  assert workdir.settled_steps(hours_config, tmp_path) == 0
  check(hours_config, tmp_path)
  (tmp_path / "checkpoints" / "2").mkdir(parents=True)
  assert workdir.settled_steps(config(hours=2.0), tmp_path) == 77
  assert workdir.settled_steps(config(hours=3.0), tmp_path) == 0
  (tmp_path / "config.json").write_text('{"hours": 2.0, "steps": "x"}')
  assert workdir.settled_steps(config(hours=2.0), tmp_path) == 0


def test_the_card_says_where_the_numbers_come_from(tmp_path):
  (tmp_path / "corpus").mkdir()
  (tmp_path / "corpus" / "text").write_text("a")
  (tmp_path / "spiece.model").write_text("b")
  data_config = config(data={"dataset": f"{tmp_path / 'corpus'},not/a/folder"})
  prints = workdir.data_fingerprints(data_config.data.dataset, tmp_path / "spiece.model")
  first = workdir.write_card(data_config, prints, tmp_path, 0)
  assert first == json.loads((tmp_path / "run.json").read_text())
  assert first["dataset"] == {str(tmp_path / "corpus"): workdir.fingerprint(tmp_path / "corpus")}
  assert {"jax", "flax", "optax", "orbax-checkpoint"} <= set(first["packages"])
  assert first["config"]["model"]["hidden_size"] == 8
  assert first["resumed"] == []
  again = workdir.write_card(data_config, prints, tmp_path, 7)
  assert [was["step"] for was in again["resumed"]] == [7]
  assert (again["id"], again["started"]) == (first["id"], first["started"])
  assert workdir.write_card(data_config, prints, tmp_path, 0)["id"] != first["id"]  # Another run.


def test_other_contents_under_the_same_name_are_refused(tmp_path):
  (tmp_path / "corpus").mkdir()
  (tmp_path / "corpus" / "text").write_text("a")
  (tmp_path / "spiece.model").write_text("b")
  (tmp_path / "checkpoints" / "2").mkdir(parents=True)
  begun = config(data={"dataset": str(tmp_path / "corpus")})

  def prints():
    return workdir.data_fingerprints(begun.data.dataset, tmp_path / "spiece.model")

  check(begun, tmp_path, prints())
  workdir.write_card(begun, prints(), tmp_path, 0)
  check(begun, tmp_path, prints())
  (tmp_path / "spiece.model").write_text("c")
  with pytest.raises(UserError, match="the contents of the vocabulary changed since the run in"):
    check(begun, tmp_path, prints())
  (tmp_path / "corpus" / "text").write_text("c")
  with pytest.raises(UserError, match=r"the contents of the dataset .*corpus and the vocabulary changed"):
    check(begun, tmp_path, prints())


@pytest.mark.parametrize("damage", [b"", b"[1]", b"{", b"[" * 100_000, b"\0\0"])
def test_damaged_notes_fall_back_on_their_copies(tmp_path, caplog, damage):
  (tmp_path / "checkpoints" / "2").mkdir(parents=True)
  check(config(), tmp_path)
  card = workdir.write_card(config(), NONE, tmp_path, 0)
  (tmp_path / "checkpoints" / "2" / "run.json").write_text(json.dumps(card))
  for names in (["config.json"], ["run.json"], ["config.json", "run.json"]):
    for name in names:
      (tmp_path / name).write_bytes(damage)
    with pytest.raises(UserError, match=r"model\.hidden_size: 8 there, 9 here"):
      check(config(model={"hidden_size": 9}), tmp_path)
    check(config(), tmp_path)
    assert workdir.write_card(config(), NONE, tmp_path, 2)["id"] == card["id"]
    assert f"{names[-1]} is damaged" in caplog.text
    caplog.clear()


DAMAGED_FIELDS = [
  {"started": "yesterday"}, {"started": 5}, {"started": "2026-01-01T00:00:00"}, {"resumed": {}}, {"resumed": [3]},
  {"resumed": [{"step": "4", "time": "2026-01-01T00:00:00+00:00"}]}, {"resumed": [{"step": 4}]}, {"id": 7},
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED_FIELDS)
def test_a_card_with_a_damaged_field_falls_back_on_its_copy(tmp_path, caplog, damage):
  (tmp_path / "checkpoints" / "2").mkdir(parents=True)
  card = workdir.write_card(config(), NONE, tmp_path, 0)
  (tmp_path / "run.json").write_text(json.dumps(card | damage))
  assert goodput.measure(workdir.write_card(config(), NONE, tmp_path, 2), [])[0].starts == 2
  (tmp_path / "checkpoints" / "2" / "run.json").write_text(json.dumps(card))
  (tmp_path / "run.json").write_text(json.dumps(card | damage))
  assert workdir.write_card(config(), NONE, tmp_path, 2)["started"] == card["started"]
  assert "run.json is damaged" in caplog.text


def test_where_a_run_can_be(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert workdir.resolve("run") == str(tmp_path / "run")
  assert workdir.resolve("gs://bucket/runs/base/") == "gs://bucket/runs/base"
  assert workdir.resolve("~/run") == str(pathlib.Path.home() / "run")
  (tmp_path / "file").touch()
  for wrong, message in {"": "is empty", "run [a]": "cannot be read in a path with", "file": "is a file"}.items():
    with pytest.raises(UserError, match=f"--workdir.* {message}"):
      workdir.resolve(wrong)
  for wrong in ("gs://bucket", "gs://bucket/", "s3://bucket/run"):
    with pytest.raises(UserError, match=f"--workdir={wrong}: .*gs://BUCKET/FOLDER"):
      workdir.resolve(wrong)


@pytest.fixture
def store(tmp_path, monkeypatch):
  """Returns {name: text} of what is in memory://run, where a run can be as well, but for its checkpoints."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  memory = fsspec.filesystem("memory")
  yield lambda: {name.removeprefix("/run/"): memory.cat(name).decode() for name in memory.find("/run")}
  memory.rm("/run", recursive=True)


def test_a_bucket_gets_what_a_run_writes_and_gives_it_back_elsewhere(store, tmp_path, monkeypatch):
  with workdir.open_run("memory://run") as files:
    assert files.path.is_relative_to(tmp_path / "cache") and files.path.name == "run"
    (files.path / "metrics.jsonl").write_text("1\n")
    files.push()
    assert not store()  # Until it is claimed, it may be another's.
    files.claim()
    (files.path / "guard.json").write_text("[]")
    files.push()
    assert {name: text for name, text in store().items() if name != "owner.json"} == {
      "metrics.jsonl": "1\n", "guard.json": "[]",
    }  # fmt: skip
    (files.path / "guard.json").unlink()
    (files.path / "export").mkdir()
    (files.path / "export" / "config.json").write_text("{}")
  assert store().keys() == {"owner.json", "metrics.jsonl", "export/config.json"}
  (files.path / "metrics.jsonl").write_text("1\n2, which the bucket never got\n")
  with workdir.open_run("memory://run") as files:
    assert (files.path / "metrics.jsonl").read_text() == "1\n"
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
  with pytest.raises(ZeroDivisionError), workdir.open_run("memory://run") as files:
    assert (files.path / "metrics.jsonl").read_text() == "1\n"
    files.claim()
    (files.path / "metrics.jsonl").write_text("1\n3\n")
    raise ZeroDivisionError
  assert store()["metrics.jsonl"] == "1\n3\n"


def test_of_two_machines_in_one_bucket_the_first_ends(store, tmp_path, monkeypatch):
  with (
    pytest.raises(OSError, match=r"memory://run was taken over at .* process \d+ on "),
    workdir.open_run("memory://run") as first,
  ):
    first.claim()
    with pytest.raises(UserError, match="memory://run is in use by another run"), workdir.open_run("memory://run"):
      pass
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    with workdir.open_run("memory://run") as other:
      first.push()  # It has not said yet that it means it.
      other.claim()
      (other.path / "metrics.jsonl").write_text("other\n")
    (first.path / "metrics.jsonl").write_text("one\n")
    first.push()
  assert store()["metrics.jsonl"] == "other\n"


def test_a_checkout_has_a_revision():
  if not (pathlib.Path(workdir.__file__).parents[2] / ".git").exists():
    pytest.skip("this is no checkout")
  assert len(workdir._code()["revision"]) == 40


def test_fingerprints_see_names_and_contents(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "x").write_text("1")
  fingerprints = {workdir.fingerprint(tmp_path / "a")}
  (tmp_path / "a" / "x").write_text("2")
  fingerprints.add(workdir.fingerprint(tmp_path / "a"))
  (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
  fingerprints.add(workdir.fingerprint(tmp_path / "a"))
  assert len(fingerprints) == 3
  large = bytearray(2 * workdir.PART + 10)
  (tmp_path / "large").write_bytes(large)
  before = workdir.fingerprint(tmp_path / "large")
  large[-1] = 1
  (tmp_path / "large").write_bytes(large)
  assert workdir.fingerprint(tmp_path / "large") != before


def test_a_file_that_changed_in_its_middle_has_another_fingerprint(tmp_path):
  text = bytearray(b"text,label\n" * 50_000)
  (tmp_path / "train.csv").write_bytes(text)
  before = workdir.fingerprint(tmp_path / "train.csv")
  text[len(text) // 2] ^= 1
  (tmp_path / "train.csv").write_bytes(text)
  assert workdir.fingerprint(tmp_path / "train.csv") != before


def test_only_the_files_that_a_run_reads_have_fingerprints(tmp_path):
  data, apart = tmp_path / "data", tmp_path / "apart.csv"
  data.mkdir()
  for path in (data / "train.csv", data / "notes.txt", apart, tmp_path / "spiece.model"):
    path.write_text(path.name)
  (tmp_path / "checkpoints" / "2").mkdir(parents=True)
  begun = config(data={"dataset": str(data)})

  def prints():
    return workdir.data_fingerprints(str(data), tmp_path / "spiece.model", [data / "train.csv", apart])

  assert set(prints()["dataset"]) == {f"{data}/train.csv", str(apart)}
  check(begun, tmp_path, prints())
  workdir.write_card(begun, prints(), tmp_path, 0)
  (data / "notes.txt").write_text("other notes")
  (data / "test.csv").touch()
  check(begun, tmp_path, prints())
  apart.write_text("other rows")
  with pytest.raises(UserError, match=r"the contents of the dataset .*apart\.csv changed"):
    check(begun, tmp_path, prints())


def test_files_beside_a_prepared_dataset_do_not_change_its_fingerprint(tmp_path):
  for name in ("prepare.json", "a.array_record-00000-of-00001"):
    (tmp_path / name).write_text(name)
  before = workdir.fingerprint(tmp_path)
  (tmp_path / "audit.png").touch()
  (tmp_path / "notes.odt").touch()
  assert workdir.fingerprint(tmp_path) == before
  (tmp_path / "prepare.json").write_text("{}")
  assert workdir.fingerprint(tmp_path) != before


@pytest.mark.parametrize(("name", "is_folder"), [("export", False), ("predictions", False), ("curves.png", True)])
def test_what_is_in_the_way_of_the_results_is_told_before_the_run(tmp_path, name, is_folder):
  (tmp_path / name).mkdir() if is_folder else (tmp_path / name).touch()
  with pytest.raises(UserError, match=name), workdir.open_run(str(tmp_path)):
    pass


def test_a_run_of_an_older_version_resumes_with_new_fields_that_are_off(tmp_path):
  check(config(model={"hidden_size": 8}), tmp_path)
  (tmp_path / "checkpoints" / "2").mkdir(parents=True)
  check(config(model={"hidden_size": 8, "square_projection": False}), tmp_path)
  with pytest.raises(UserError, match=r"square_projection: (None|False) there, True here"):
    check(config(model={"hidden_size": 8, "square_projection": True}), tmp_path)


def test_another_config_is_told_in_short(tmp_path):
  fields = {f"a{i}": 1 for i in range(20)}
  (tmp_path / "checkpoints" / "2").mkdir(parents=True)
  check(config(**fields, task={"name": "pretrain"}), tmp_path)
  with pytest.raises(UserError, match=r"a15: 1 there, 2 here; and 12 more fields\); give the same"):
    check(config(**dict.fromkeys(fields, 2), task={"name": "pretrain"}), tmp_path)
  with pytest.raises(UserError, match="a run of the task 'pretrain', not 'classify'; give another --workdir"):
    check(config(**fields, task={"name": "classify"}), tmp_path)
