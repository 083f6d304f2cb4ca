"""The documentation shipped with Python as a small corpus: the TFDS dataset `python_docs`.

The quick start trains on it without a download. Importing this module registers the dataset for
`tfds.builder("python_docs", file_format="array_record")`.
"""

import ast
import inspect
import pathlib
import platform
import re
import sysconfig
import warnings

import tensorflow_datasets as tfds

# Folders of the standard library whose docstrings are tests or third-party code, not documentation.
_SKIPPED = re.compile(r"(^|/)(tests?|idle_test|site-packages|dist-packages|__phello__|config-[^/]*|pydoc_data)(/|$)")


def paragraphs(text: str) -> list[str]:
  """Returns the prose of a documentation text, one paragraph an item.

  Args:
    text: str, reStructuredText as in a docstring or a topic of `pydoc`.

  Returns:
    list[str], white space collapsed; rulers under headings, doctests and blocks that are mostly symbols are left out.
  """
  blocks = re.split(r"\n\s*\n", inspect.cleandoc(text))
  blocks = [" ".join(re.sub(r"(?m)^\s*([*=\-~^#+])\1{2,}\s*$", "", block).split()) for block in blocks]
  return [b for b in blocks if b and ">>>" not in b and sum(c.isalpha() or c == " " for c in b) >= 0.75 * len(b)]


def topics() -> list[tuple[str, list[str]]]:
  """Returns the language reference of the running Python: list of (name, paragraphs), by name."""
  from pydoc_data import topics as pydoc

  return [(f"topic/{name}", paragraphs(pydoc.topics[name])) for name in sorted(pydoc.topics)]


def docstrings() -> list[tuple[str, list[str]]]:
  """Returns the docstrings of the standard library, read from its source without importing it.

  Returns:
    list of (name, paragraphs), one item a module that has any, by path.
  """
  root = pathlib.Path(sysconfig.get_paths()["stdlib"])
  result = []
  for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
    name = path.relative_to(root).as_posix()
    if _SKIPPED.search(name):
      continue
    try:
      with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The user cannot change invalid escapes in the standard library.
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # templates and deliberately broken files
      continue
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    nodes.sort(key=lambda n: getattr(n, "lineno", 0))
    result.append((f"module/{name}", [p for n in nodes for p in paragraphs(ast.get_docstring(n) or "")]))
  return [(name, lines) for name, lines in result if lines]


class PythonDocs(tfds.core.GeneratorBasedBuilder):
  """One document a topic or module; `text` holds one paragraph a line."""

  VERSION = tfds.core.Version(platform.python_version().split("+")[0])  # another Python, another text
  url_infos = {}  # noqa: RUF012  (no checksums: nothing is downloaded, so TFDS need not look for their file)

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      description="The language reference and the standard library's docstrings of the running Python.",
      features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
      homepage="https://docs.python.org/3/",
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing to download
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for name, lines in topics() + docstrings():
      yield name, {"text": "\n".join(lines)}
