"""Files that appear when they are whole, on this machine and in stores."""

import pathlib

import fsspec
import pytest

from albert_jax import UserError, files


@pytest.mark.parametrize("root", ["", "memory://files", "gs://bucket/files"])
def test_a_file_appears_when_it_is_whole(tmp_path, root, request):
  if root.startswith("gs://"):
    request.getfixturevalue("bucket")
  root = root or str(tmp_path)
  files.write(f"{root}/a/b", b"one")
  assert files.read(f"{root}/a/b") == b"one" and files.sizes(f"{root}/a") == {"b": 3}
  with pytest.raises(KeyboardInterrupt), files.writing(f"{root}/a/b") as local:
    with open(local, "wb") as file:
      file.write(b"half")
    raise KeyboardInterrupt
  assert files.read(f"{root}/a/b") == b"one" and files.sizes(f"{root}/a") == {"b": 3}
  files.write(f"{root}/a/c/d", b"two")
  assert {name: facts["size"] for name, facts in files.everything(f"{root}/a").items()} == {"b": 3, "c/d": 3}
  assert list(files.everything(f"{root}/a/b")) == [""] and files.everything(f"{root}/x") == {}
  assert b"".join(files.blocks(f"{root}/a/c/d")) == b"two"
  files.move(f"{root}/a", f"{root}/c")
  assert files.exists(f"{root}/c/b") and not files.exists(f"{root}/a")
  files.remove(f"{root}/c")
  files.remove(f"{root}/c")
  assert not files.exists(f"{root}/c")


def contents(folder):
  return {str(p.relative_to(folder)): p.read_bytes() for p in pathlib.Path(folder).rglob("*") if p.is_file()}


def test_a_copy_is_fetched_once_and_again_when_there_is_another(bucket, tmp_path):
  bucket.objects["bucket"] = {"data/a": (1, b"one"), "data/b/c": (2, b"two"), "database": (3, b"")}
  here = files.local("gs://bucket/data/")
  assert contents(here) == {"a": b"one", "b/c": b"two"} and pathlib.Path(here).name == "data"
  assert pathlib.Path(here).is_relative_to(tmp_path / "cache" / "albert_jax")
  assert pathlib.Path(files.local("gs://bucket/data/a")).read_bytes() == b"one"
  assert files.local("data") == "data" and files.local(tmp_path) == tmp_path

  files.local.cache_clear()  # Another process.
  bucket.calls.clear()
  assert files.local("gs://bucket/data/") == here
  assert not [call for call in bucket.calls if "alt=media" in call]
  (pathlib.Path(here) / "b" / "c").unlink()  # As when the first process was killed before it came to this.
  files.local.cache_clear()
  assert contents(files.local("gs://bucket/data/")) == {"a": b"one", "b/c": b"two"}
  assert len([call for call in bucket.calls if "alt=media" in call]) == 1

  bucket.objects["bucket"]["data/a"] = (4, b"three")
  files.local.cache_clear()
  assert contents(files.local("gs://bucket/data")) == {"a": b"three", "b/c": b"two"}
  assert contents(here) == {"a": b"one", "b/c": b"two"}  # Somebody may still be reading it.


def test_what_is_not_there_not_allowed_or_not_reached_is_one_line(bucket, monkeypatch):
  bucket.objects["bucket"]["a"] = (1, b"one")

  def fails(path, error, words, do=files.local):
    files.local.cache_clear()
    with pytest.raises(error, match=words) as found:
      do(path)
    assert "\n" not in str(found.value)

  fails("gs://bucket/b", UserError, "nothing at gs://bucket/b")
  fails("gs://bucket/b", UserError, "gs://bucket/b: not found", files.read)
  fails("gs://no_such_bucket/b", UserError, "gs://no_such_bucket/b: not found")
  fails("what://b", UserError, "give gs://BUCKET/NAME")
  for status, error in ((403, UserError), (401, UserError), (418, OSError)):
    bucket.refuse = "", status
    fails("gs://bucket/a", error, "gs://bucket/a(: not allowed| could not be reached)")
  bucket.refuse = None
  monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2}))
  fails("gs://bucket/a", UserError, "has room for 0.0; make room")


def test_without_its_package_a_store_says_what_to_install(monkeypatch):
  def missing(*_):
    raise ImportError("Please install gcsfs")

  monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
  with pytest.raises(UserError, match=r"pip install 'albert-jax\[gcs\]'"):
    files.local("gs://bucket/without")
