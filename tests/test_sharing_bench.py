"""The meter of sharing counts parameters by how often they are used, and finds the exponent that made its losses."""

import importlib.util
import pathlib
import sys

import numpy as np
import pytest

from albert_jax import model

VOCABULARY = 8192
PATH = pathlib.Path(__file__).parents[1] / "benchmarks" / "sharing.py"


@pytest.fixture(scope="module")
def bench():
  spec = importlib.util.spec_from_file_location("sharing_bench", PATH)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # Its dataclass looks itself up there.
  spec.loader.exec_module(module)
  yield module
  del sys.modules[spec.name]


def test_each_parameter_is_counted_once(bench):
  for cell in bench.grid(4e6, bench.FORMS, VOCABULARY):
    once, looped, loops = bench.counts(cell.model)
    shapes = model.shapes(cell.model)
    tables = model.param_count(shapes["embeddings"]) + VOCABULARY  # And the bias of the vocabulary's logits.
    assert once + looped == model.param_count(shapes) - tables
    assert loops == cell.layers - 2 * cell.model.unshared_ends
    assert (looped == 0) == (cell.form == "unshared" or cell.layers == 1)
  block = bench.counts(bench.Cell("shared", 4, 1, VOCABULARY).model)[1]
  ends = bench.counts(bench.Cell("ends", 8, 1, VOCABULARY).model)
  assert ends[1] == block and ends[2] == 6
  assert ends[0] == bench.counts(bench.Cell("shared", 4, 1, VOCABULARY).model)[0] + 2 * block
  shared, matrices = (bench.counts(bench.Cell(form, 4, 1, VOCABULARY).model) for form in ("shared", "matrices"))
  assert matrices[1] < shared[1] and matrices[0] > shared[0]


def test_runs_of_equal_compute_need_the_operations_of_the_reference(bench):
  cells = bench.grid(4e6, bench.FORMS, VOCABULARY)
  steps = cells[0].steps
  reference = bench.Cell("shared", bench.REFERENCE, steps, VOCABULARY).operations
  others = [cell for cell in cells if cell.steps != steps]
  assert {cell.layers for cell in others if not cell.model.layer_rank} == set(bench.LAYERS) - {bench.REFERENCE}
  assert {cell.layers for cell in cells if cell.form == "ends"} == {4, 8}
  assert all(abs(cell.operations / reference - 1) < 0.01 for cell in others)


def test_the_fit_finds_the_exponents_that_made_the_losses(bench):
  cells = bench.grid(4e6, bench.BASIC, VOCABULARY)
  true = {"shared": 0.3, "matrices": 0.6, "unshared": 0.0}
  losses = []
  for cell in cells:
    once, looped, loops = bench.counts(cell.model)
    size = once + loops ** true[cell.form] * looped
    losses.append(2.0 + 1.5 * (size / 4e5) ** -0.5 + 1.2 * (cell.positions / 4e6) ** -0.4)
  fitted = bench.fit(cells, np.array(losses))
  assert fitted["rms"] < 1e-3
  assert fitted["phi_shared"] == pytest.approx(0.3, abs=0.05)
  assert fitted["phi_matrices"] == pytest.approx(0.6, abs=0.05)

  rng = np.random.default_rng(0)
  noisy = np.array(losses)[:, None] + rng.normal(0, 0.002, (len(cells), 3))
  low, high = bench.interval(cells, noisy.tolist(), draws=20)["phi_shared"]
  assert low < high


def test_a_cell_without_some_seeds_is_comparable(bench):
  cells = bench.grid(4e6, ("shared", "ends"), VOCABULARY)
  equal = [cell for cell in cells if cell.steps == cells[0].steps]
  level, shift = {cell: 4 + 0.1 * cell.layers for cell in cells}, {0: -0.03, 1: 0.03}
  losses = {(cell, seed): level[cell] + shift[seed] for cell in cells for seed in shift}
  del losses[equal[-1], 1]
  rows = bench.comparable(losses, cells)
  assert len(rows[equal[-1]]) == 1
  assert all(value == pytest.approx(level[cell]) for cell, row in rows.items() for value in row)
