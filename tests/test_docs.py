"""The documentation: it builds without a warning, and its generated pages are those the code makes."""

import os
import pathlib
import subprocess
import sys

import pytest

from albert_jax.commands import COMMANDS, reference

ROOT = pathlib.Path(__file__).parents[1]


def test_the_page_of_commands_is_current():
  text = reference.markdown()
  assert (ROOT / "docs/commands.md").read_text() == text, (
    "run: python -m albert_jax.commands.reference docs/commands.md"
  )
  assert all(f"\n## {name}\n" in text for name in COMMANDS)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
  pytest.importorskip("mkdocs", reason="needs the extra [docs]")
  command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
  env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
  done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-2000:]
  assert "WARNING" not in done.stderr
  pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
  built = {path.parent.relative_to(tmp_path / "site") for path in (tmp_path / "site").rglob("index.html")}
  assert {page.parent if page.name == "index" else page for page in pages} <= built
  api = (tmp_path / "site/api/index.html").read_text()
  assert "albert_jax.load" in api and "Parameters:" in api, "docstrings are on the page"
