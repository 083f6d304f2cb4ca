"""Files that appear when they are whole."""

import pytest

from albert_jax.data import files


@pytest.mark.parametrize("root", ["", "memory://files"])
def test_a_file_appears_when_it_is_whole(tmp_path, root):
  root = root or str(tmp_path)
  files.write(f"{root}/a/b", b"one")
  assert files.read(f"{root}/a/b") == b"one" and files.sizes(f"{root}/a") == {"b": 3}
  with pytest.raises(KeyboardInterrupt), files.writing(f"{root}/a/b") as local:
    with open(local, "wb") as file:
      file.write(b"half")
    raise KeyboardInterrupt
  assert files.read(f"{root}/a/b") == b"one" and files.sizes(f"{root}/a") == {"b": 3}
  files.move(f"{root}/a", f"{root}/c")
  assert files.exists(f"{root}/c/b") and not files.exists(f"{root}/a")
  files.remove(f"{root}/c")
  files.remove(f"{root}/c")
  assert not files.exists(f"{root}/c")
