"""Low-rank differences: what they add, what stays, and a run that trains them."""

import dataclasses
import json
import pathlib

import jax
import made_up
import numpy as np
import pytest
from small_models import SMALL, random_params

from albert_jax import VARIANTS, convert, model, paths
from albert_jax.__main__ import main
from albert_jax.model import lora
from albert_jax.training.writer import read

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "classify.py"


@pytest.mark.parametrize(("ranks", "numbers"), [((8, 0), 110_592), ((0, 8), 241_024), ((8, 8), 351_616)])
def test_base_has_the_numbers_of_the_matrices_at_rank_8(ranks, numbers):
  cfg = VARIANTS["base"]
  shapes = jax.eval_shape(lambda key: lora.init(cfg, model.shapes(cfg), *ranks, key), jax.random.key(0))
  assert model.param_count(shapes) == numbers


@pytest.mark.parametrize("fields", [{}, {"share": "none"}, {"num_hidden_groups": 2, "inner_group_num": 2}], ids=str)
def test_differences_are_added_to_each_matrix_and_begin_as_nothing(fields):
  cfg = dataclasses.replace(SMALL, num_hidden_layers=2, **fields)
  params = random_params(cfg)
  fresh = lora.init(cfg, params, 2, 2, jax.random.key(0))
  for path, value in paths.flatten(lora.merged({**params, "lora": fresh})).items():
    np.testing.assert_array_equal(value, paths.flatten(params)[path], err_msg=path)

  moved = jax.tree.map(lambda x: np.asarray(x + 0.1), fresh)
  differences, merged = paths.flatten(moved), paths.flatten(lora.merged({**params, "lora": moved}))
  for path, value in paths.flatten(params).items():
    expected, matrix = np.array(value), path.rpartition("/")[0]
    if matrix in lora.MATRICES and path == lora.weight(matrix):
      a, b = differences[f"{matrix}/a"], differences[f"{matrix}/b"]
      for index in np.ndindex(a.shape[: a.ndim - 1 - lora.MATRICES[matrix]]):
        expected[index] += (a[index].reshape(-1, 2) @ b[index].reshape(2, -1)).reshape(expected[index].shape)
    np.testing.assert_allclose(merged[path], expected, atol=1e-6, err_msg=path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  return made_up.checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return made_up.yes_or_no(tmp_path_factory.mktemp("data"))


def flags(checkpoint, data, **overrides):
  values = {
    "init_from": checkpoint, "data__dataset": data, "data__seq_length": 16, "batch_size": 16, "epochs": 0, "steps": 4,
    "eval_every": 4, "checkpoint_every": 2, "log_every": 1, "optimizer__learning_rate": 1e-2, "lora_rank": 2,
    **overrides,
  }  # fmt: skip
  return [f"--config={CONFIG}:base", *(f"--config.{k.replace('__', '.')}={v}" for k, v in values.items())]


@pytest.mark.parametrize("ranks", [(2, 0), (0, 2)], ids=str)
def test_a_run_moves_the_matrices_by_its_ranks_and_nothing_else(checkpoint, data, tmp_path, capsys, ranks):
  for steps in (2, 4):  # Stopped after two steps, and gone on with.
    chosen = flags(checkpoint, data, steps=steps, lora_rank=ranks[0], lora_word_rank=ranks[1])
    assert main(["train", *chosen, f"--workdir={tmp_path}/run"]) == 0
  (_, before), (_, after) = convert.load(checkpoint), convert.load(tmp_path / "run")
  before, after = paths.flatten(before), paths.flatten(after)
  assert "lora" not in {path.split("/")[0] for path in after} and "classifier/kernel" in after
  for path in after.keys() & before.keys():
    change = after[path] - before[path]
    matrix = path.rpartition("/")[0]
    if matrix in lora.MATRICES and path == lora.weight(matrix):
      inputs, rank = lora.MATRICES[matrix], ranks[matrix == "embeddings/word"]
      assert np.linalg.matrix_rank(change.reshape(int(np.prod(change.shape[:inputs])), -1), tol=1e-6) == rank, path
    else:
      np.testing.assert_array_equal(change, 0, err_msg=path)
  (last,) = (line for line in read(tmp_path / "run") if line["split"] == "eval" and line["step"] == 4)
  capsys.readouterr()
  assert main(["evaluate", f"--checkpoint={tmp_path}/run"]) == 0
  assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(last["loss"], abs=1e-5)


@pytest.mark.parametrize(
  ("overrides", "words"),
  [
    ({"init_from": "", "init_structure": False}, "lora_rank=2 changes a trained model; add --config.init_from"),
    (
      {"init_from": "", "init_structure": False, "lora_rank": 0, "lora_word_rank": 2},
      "lora_word_rank=2 changes a trained",
    ),
    ({"optimizer__freeze": "^ffn/"}, "optimizer.freeze='^ffn/' has no effect beside lora_rank=2"),
    ({"optimizer__rates": "^ffn/=0.5"}, "'^ffn/' matches only parameters that stay as they are"),
    ({"lora_rank": -1}, "lora_rank=-1 must be 0 or more"),
    ({"lora_word_rank": -1}, "lora_word_rank=-1 must be 0 or more"),
  ],
)
def test_what_it_refuses(checkpoint, data, tmp_path, capsys, overrides, words):
  assert main(["train", *flags(checkpoint, data, **overrides), f"--workdir={tmp_path}/run"]) == 2
  assert words in capsys.readouterr().err
