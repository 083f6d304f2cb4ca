"""A checkout runs without being installed, by PYTHONPATH alone."""

import importlib.metadata

import pytest

import albert_jax
from albert_jax import __main__ as main
from albert_jax import versions
from albert_jax.serve import openapi
from albert_jax.training import workdir


@pytest.fixture
def not_installed(monkeypatch):
  def version(name):
    raise importlib.metadata.PackageNotFoundError(name)

  monkeypatch.setattr(importlib.metadata, "version", version)


def test_an_installed_package_has_its_version():
  assert versions.installed("jax")[0].isdigit()


@pytest.mark.usefixtures("not_installed")
def test_a_checkout_that_is_not_installed_says_so(capsys):
  assert albert_jax.__version__ == versions.NOT_INSTALLED
  assert main.main(["--version"]) == 0
  assert capsys.readouterr().out == f"albert-jax {versions.NOT_INSTALLED}\n"
  assert workdir._code()["version"] == versions.NOT_INSTALLED
  assert openapi.document([], {})["info"]["version"] == versions.NOT_INSTALLED
