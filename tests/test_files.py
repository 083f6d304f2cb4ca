"""Files that appear when they are whole, on this machine and in stores."""

import errno
import os
import pathlib

import fsspec
import pytest

from albert_jax import UserError, copies, files


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
  copy = copies.local("gs://bucket/data/")
  assert contents(copy) == {"a": b"one", "b/c": b"two"} and pathlib.Path(copy).name == "data"
  assert pathlib.Path(copy).is_relative_to(tmp_path / "cache" / "albert_jax")
  assert pathlib.Path(copies.local("gs://bucket/data/a")).read_bytes() == b"one"
  assert copies.local("data") == "data" and copies.local(tmp_path) == str(tmp_path)

  copies.local.cache_clear()  # Another process.
  bucket.calls.clear()
  assert copies.local("gs://bucket/data/") == copy
  assert not [call for call in bucket.calls if "alt=media" in call]
  (pathlib.Path(copy) / "b" / "c").unlink()  # As when the first process was killed before it came to this.
  copies.local.cache_clear()
  assert contents(copies.local("gs://bucket/data/")) == {"a": b"one", "b/c": b"two"}
  assert len([call for call in bucket.calls if "alt=media" in call]) == 1

  bucket.objects["bucket"]["data/a"] = (4, b"three")
  copies.local.cache_clear()
  assert contents(copies.local("gs://bucket/data")) == {"a": b"three", "b/c": b"two"}
  assert contents(copy) == {"a": b"one", "b/c": b"two"}  # Somebody may still be reading it.


def test_what_is_not_there_not_allowed_or_not_reached_is_one_line(bucket, monkeypatch):
  bucket.objects["bucket"]["a"] = (1, b"one")

  def fails(path, error, words, do=copies.local):
    copies.local.cache_clear()
    with pytest.raises(error, match=words) as caught:
      do(path)
    assert "\n" not in str(caught.value)

  fails("gs://bucket/b", UserError, "nothing at gs://bucket/b")
  fails("gs://bucket/b", UserError, "gs://bucket/b: not found", files.read)
  fails("gs://no_such_bucket/b", UserError, "gs://no_such_bucket/b: not found")
  fails("what://b", UserError, "give gs://BUCKET/NAME")
  for status, error in ((403, UserError), (401, UserError), (418, OSError)):
    bucket.refuse = "", status
    fails("gs://bucket/a", error, "gs://bucket/a(: not allowed| could not be reached)")
  bucket.refuse = None
  monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2}))
  fails("gs://bucket/a", UserError, "has 0.0 GiB free; free some space")


def test_without_its_package_a_store_says_what_to_install(monkeypatch):
  def missing(*_):
    raise ImportError("Please install gcsfs")

  monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
  with pytest.raises(UserError, match=r"pip install 'albert-jax\[gcs\]'"):
    copies.local("gs://bucket/without")


def test_an_error_leaves_no_file_and_no_folder(tmp_path):
  with pytest.raises(OSError), files.writing(tmp_path / "new/er/file"):
    raise OSError
  with pytest.raises(OSError), files.writing_folder(tmp_path / "new/er/folder"):
    raise OSError
  assert list(tmp_path.iterdir()) == []


def test_a_place_is_tried_before_the_work_and_nothing_is_left_there(tmp_path):
  files.check_writable(tmp_path / "new/folder/file")
  assert not list(tmp_path.iterdir())
  (tmp_path / "file").write_text("kept")
  files.check_writable(tmp_path / "file")
  assert (tmp_path / "file").read_text() == "kept"
  with pytest.raises(OSError, match="file/below"):
    files.check_writable(tmp_path / "file/below/model")


def test_modes_are_what_the_umask_gives(tmp_path):
  before = os.umask(0o027)
  try:
    with files.writing(tmp_path / "file") as temporary:
      pathlib.Path(temporary).touch(0o600)
    with files.writing_folder(tmp_path / "folder") as folder:
      (folder / "inner").mkdir(0o700)
      (folder / "inner/file").touch(0o600)
  finally:
    os.umask(before)
  modes = [oct((tmp_path / name).stat().st_mode & 0o777) for name in ("file", "folder", "folder/inner/file")]
  assert modes == ["0o640", "0o750", "0o640"]
  assert oct((tmp_path / "folder/inner").stat().st_mode & 0o777) == "0o750"


def test_links_are_replaced_and_pipes_are_written_to(tmp_path):
  (tmp_path / "precious").write_text("precious")
  (tmp_path / "link").symlink_to("precious")
  files.write(tmp_path / "link", "new")
  assert (tmp_path / "precious").read_text() == "precious"
  assert (tmp_path / "link").read_text() == "new" and not (tmp_path / "link").is_symlink()
  os.mkfifo(tmp_path / "pipe")
  reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
  files.write(tmp_path / "pipe", "through")
  assert os.read(reader, 100) == b"through" and (tmp_path / "pipe").is_fifo()
  os.close(reader)
  files.write("/dev/null", "gone")
  assert pathlib.Path("/dev/null").is_char_device()
  for folder in (tmp_path, f"{tmp_path}/new/"):
    with pytest.raises(UserError, match="is a folder"):
      files.write(folder, "x")


def test_of_files_that_belong_together_none_is_replaced_unless_all_can_be(tmp_path, monkeypatch):
  a, b = str(tmp_path / "a"), str(tmp_path / "b")
  files.write_all({a: "old", b: "old"})
  write_bytes = pathlib.Path.write_bytes

  def full(path, data):
    if path.name == "b":
      raise OSError(errno.ENOSPC, "No space left on device")
    return write_bytes(path, data)

  monkeypatch.setattr(pathlib.Path, "write_bytes", full)
  for contents in ({a: "new", b: "new"}, {b: "new", a: "new"}):
    with pytest.raises(OSError, match="No space left") as error:
      files.write_all(contents)
    assert error.value.filename == b
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["old", "old"]


def test_overwrite_deletes_only_what_this_project_makes(tmp_path):
  for names, fits in (
    (("config.json", "model.safetensors", "spiece.model"), True),
    (("config.json", "model.safetensors", "chapter1.tex"), False),
    (("prepare.json", "a.array_record-00000-of-00001", "spiece.model"), True),
    (("prepare.json", "sub/notes.txt"), False),
    (("config.json", "README.md"), False),  # Of another project, maybe.
    (("checkpoint",), False),
  ):
    folder = tmp_path / "-".join(names).replace("/", "_")
    for name in names:
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      (folder / name).touch()
    with pytest.raises(UserError, match="exists already"):
      files.check_new_folder(folder)
    if fits:
      files.check_new_folder(folder, overwrite=True)
    else:
      with pytest.raises(UserError, match="did not make"):
        files.check_new_folder(folder, overwrite=True)
  (tmp_path / "link").symlink_to(folder)
  with pytest.raises(UserError, match="is a link"):
    files.check_new_folder(tmp_path / "link", overwrite=True)
  (tmp_path / "empty").mkdir()
  files.check_new_folder(tmp_path / "empty")


def test_files_of_others_are_kept_where_a_folder_is_replaced(tmp_path):
  folder = tmp_path / "folder"
  for name in ("model.safetensors", "config.json", "onnx/model.onnx", "notes/plan.txt", "table.csv"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"old {name}")
  (folder / "link").symlink_to("nowhere")
  (folder / "notes/plan.txt").chmod(0o600)
  with pytest.raises(RuntimeError), files.writing_folder(folder, keep_others=True):
    raise RuntimeError
  assert len([path for path in folder.rglob("*") if not path.is_dir()]) == 6
  with files.writing_folder(folder, keep_others=True) as new:
    (new / "model.safetensors").write_text("new")
    (new / "table.csv").write_text("new")
  texts = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
  assert texts == {"model.safetensors": "new", "table.csv": "new", "notes/plan.txt": "old notes/plan.txt"}
  assert os.readlink(folder / "link") == "nowhere"
  assert (folder / "notes/plan.txt").stat().st_mode & 0o777 == 0o600
  assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_paths_of_users(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert files.user_path("~/a") == f"{tmp_path}/a" and files.user_path("gs://b/~/c") == "gs://b/~/c"
  with pytest.raises(UserError, match="--out is empty"):
    files.user_path(" ", "--out")
  with pytest.raises(UserError, match="no user"):
    files.user_path("~no_such_user/x")
  monkeypatch.chdir(tmp_path)
  for name in ("a,b.txt", "c.txt", "d [1].txt", "e[x]/f.txt", "g1.txt"):
    pathlib.Path(name).parent.mkdir(exist_ok=True)
    pathlib.Path(name).touch()
  assert files.split_list("c.txt, a,b.txt,~/x,gs://b/c,") == ["c.txt", "a,b.txt", f"{tmp_path}/x", "gs://b/c"]
  assert files.matching("d [1].txt") == ["d [1].txt"]
  assert files.matching("e[x]/*.txt") == ["e[x]/f.txt"]
  assert files.matching("[cg]*.txt") == ["c.txt", "g1.txt"]
  assert files.matching("missing.txt") == files.matching("no[x]") == []
  files.write("a::b", "x")  # fsspec would read it as a chain of stores.
  assert files.read("a::b") == b"x"


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "..\\x", "C:\\x", "", "a\0b"])
def test_names_stay_inside_their_folder(name):
  with pytest.raises(UserError, match="outside"):
    files.inside("folder", name)
  assert files.inside("folder", "a/b..c") == "folder/a/b..c"


def test_an_object_that_leads_out_of_the_cache_is_refused(bucket, tmp_path):
  bucket.objects["bucket"] = {"model/a": (1, b"one"), "model/../../../VICTIM": (2, b"two")}
  with pytest.raises(UserError, match="outside"):
    copies.local("gs://bucket/model")
  assert not list(tmp_path.rglob("VICTIM"))


def test_a_corpus_is_found_whatever_its_name(tmp_path, monkeypatch):
  from albert_jax.data.corpus import work_units

  monkeypatch.setenv("HOME", str(tmp_path))
  folder = tmp_path / "my [1], data"
  folder.mkdir()
  for name in ("a.txt", "b [x].txt", "c,d.txt"):
    (folder / name).write_text("One line.\n\nAnother.\n")
  reading = work_units.Reading()

  def sources(spec):
    return [span.source for unit in work_units.plan(spec, reading) for span in unit.spans]

  everything = [str(folder / name) for name in ("a.txt", "b [x].txt", "c,d.txt")]
  for spec in (str(folder), f"{folder}/*.txt", "~/my [1], data", ",".join(everything)):
    assert sources(spec) == everything, spec
  assert sources(f"{folder}/b [x].txt") == everything[1:2]


def test_a_figure_is_whole_before_the_disk_is_touched(tmp_path):
  class Figure:
    def savefig(self, file, format, dpi):
      file.write(f"{format} {dpi} {len(list(tmp_path.iterdir()))}".encode())

  files.write_figure(tmp_path / "new" / "a.PDF", Figure())
  assert (tmp_path / "new" / "a.PDF").read_bytes() == b"pdf 150 0"


def test_a_path_with_a_slip_names_the_near_one(tmp_path, monkeypatch):
  (tmp_path / "runs/mine").mkdir(parents=True)
  (tmp_path / "runs/.mime").mkdir()
  monkeypatch.chdir(tmp_path)
  assert files.near_path("runs/mime/") == "; did you mean runs/mine?"
  assert files.near_path("rnus") == "; did you mean runs?"
  assert files.near_path(f"{tmp_path}/runz") == f"; did you mean {tmp_path}/runs?"
  assert files.near_path("runs/other") == files.near_path("absent/mine") == ""


def test_a_full_disk_under_a_library_is_an_error_of_the_system(tmp_path):
  with pytest.raises(OSError, match="No space left") as error, files.writing(tmp_path / "a"):
    raise RuntimeError("write() failed: No space left on device; at byte 245760")
  assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / "a"))
  with pytest.raises(RuntimeError, match="other"), files.writing(tmp_path / "a"):
    raise RuntimeError("other")
