"""Models and datasets by their name on the Hub, against a stand-in on this machine."""

import collections
import io
import os
import subprocess
import sys

import pytest
from hub_stand_in import Hub
from small_models import SMALL, assert_same, random_params

import albert_jax
from albert_jax import UserError
from albert_jax.commands import push
from albert_jax.convert import hf, hub
from albert_jax.data.corpus import readers, work_units

pytest.importorskip("huggingface_hub")


@pytest.fixture
def world(monkeypatch, tmp_path):
  """Returns a running Hub with one model, an empty cache, and a folder to work in."""
  monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
  for name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home/hub"))
  monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "home/token"))
  monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
  monkeypatch.chdir(tmp_path)
  hub.fetch.cache_clear()
  hf.save(tmp_path / "made", SMALL, random_params(SMALL))
  with Hub().running() as server:
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    server.models["owner/small"] = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    server.models["owner/small"]["tf_model.h5"] = b"of another framework"
    yield server
  hub.fetch.cache_clear()


def test_names():
  assert hub.is_name("hf://a/b") and hub.is_name("albert/albert-base-v2") and hub.is_name("a/b@main")
  for path in ("tests/none", "./a/b", "/a/b", "~/a", "a", "a/b/c", "gs://a/b"):
    assert not hub.is_name(path), path


def test_a_model_is_loaded_by_name_and_then_without_the_hub(world, tmp_path, monkeypatch):
  cfg, params = albert_jax.load("owner/small")
  assert cfg == SMALL
  assert_same(params, random_params(SMALL))
  assert not list((tmp_path / "home").rglob("tf_model.h5"))
  hub.fetch.cache_clear()
  monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # Nobody answers there.
  assert_same(albert_jax.load("hf://owner/small")[1], params)
  hub.fetch.cache_clear()
  with pytest.raises(UserError, match="cannot be reached"):
    albert_jax.load("hf://owner/other")


def test_a_name_that_nobody_has_is_one_line(world):
  with pytest.raises(UserError, match="the Hugging Face Hub has no model of that name"):
    albert_jax.load("owner/none")
  with pytest.raises(UserError, match="give hf://OWNER/NAME"):
    albert_jax.load("hf://owner")


def test_without_its_package_the_extra_is_named():
  code = "import sys; sys.modules['huggingface_hub'] = None\nfrom albert_jax.convert import hub\nhub.fetch('a/b')"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  assert "pip install 'albert-jax[hub]'" in done.stderr


def test_push(world, tmp_path, monkeypatch, capsys):
  folder = tmp_path / "made"
  with pytest.raises(UserError, match=r"has no README\.md"):
    push.main([str(folder), "--to=me/mine"])
  with pytest.raises(UserError, match=r"albert-jax export --checkpoint='.*/my run' --out=DIR"):  # To be typed as it is.
    push.main([str(tmp_path / "my run"), "--to=me/mine"])
  (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Mine\n")
  (folder / ".hidden").write_text("no")
  push.main([f"--checkpoint={folder}", "--to=me/mine", "--dry_run"])
  assert "would upload 3 files to me/mine" in capsys.readouterr().out
  with pytest.raises(UserError, match="there is no token"):
    push.main([str(folder), "--to=me/mine"])
  monkeypatch.setenv("HF_TOKEN", "hf_test")
  push.main([str(folder), "--to=me/mine"])
  assert set(world.models["me/mine"]) == {"config.json", "model.safetensors", "README.md"}
  assert world.models["me/mine"]["README.md"].startswith(b"---")
  assert "Bearer hf_test" in world.tokens
  world.refuse = 403
  with pytest.raises(UserError, match="may not write"):
    push.main([str(folder), "--to=me/mine"])
  with pytest.raises(UserError, match="expected OWNER/NAME"):
    push.main([str(folder), "--to=mine"])
  for both in ([], [str(folder), f"--checkpoint={folder}"]):
    with pytest.raises(UserError, match="give one folder made by albert-jax export"):
      push.main([*both, "--to=me/mine"])
  assert os.environ["HF_TOKEN"] not in capsys.readouterr().out


def test_parquet_of_a_dataset_is_a_corpus(world, monkeypatch):
  import pyarrow
  from pyarrow import parquet

  texts = ["The first document. It has two sentences.", "The second document."]
  for i, text in enumerate(texts):
    file = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": [text]}), file)
    world.datasets.setdefault("owner/corpus", {})[f"data/train-{i}.parquet"] = file.getvalue()
  # The library reads HF_ENDPOINT once, when it is imported.
  monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", world.url)
  template = f"{world.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
  monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
  for spec in ("hf://datasets/owner/corpus", "hf://datasets/owner/corpus/data/*.parquet"):
    tally = collections.Counter()
    [unit] = work_units.plan(spec, work_units.Reading())
    assert [" ".join(document) for document in readers.documents(unit, work_units.Reading(), tally)] == texts, spec
  with pytest.raises(UserError, match="none matches no file"):
    work_units.plan("hf://datasets/owner/none", work_units.Reading())


def test_a_dataset_without_the_library_names_the_extra(monkeypatch):
  def without(path):
    raise ImportError("Install huggingface_hub to access HfFileSystem")

  monkeypatch.setattr("fsspec.core.url_to_fs", without)
  with pytest.raises(UserError, match=r"pip install 'albert-jax\[hub\]'"):
    work_units.plan("hf://datasets/owner/corpus", work_units.Reading())
