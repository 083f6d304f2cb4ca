"""What every test shares: strict arithmetic, and the real data where ALBERT_DATA names it."""

import os
import pathlib

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)  # So that meshes can be tested on any machine.


@pytest.fixture(scope="session")
def real_data():
  """The folder of real corpora, vocabularies and checkpoints; tests that use it are marked `realdata`."""
  return pathlib.Path(os.environ["ALBERT_DATA"])


def pytest_collection_modifyitems(items):
  if "ALBERT_DATA" not in os.environ:
    skip = pytest.mark.skip(reason="needs real data: set ALBERT_DATA to its folder")
    for item in items:
      if "realdata" in item.keywords:
        item.add_marker(skip)
