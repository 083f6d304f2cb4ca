import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from albert_jax.errors import UserError
from albert_jax.training import sharding
from albert_jax.training.sharding import MeshConfig


def test_the_mesh_takes_all_devices():
  mesh = sharding.make_mesh(MeshConfig(), 8)
  assert mesh.shape == {"data": len(jax.devices()), "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("axes", [{"data": 7}, {"data": 0}, {"data": -2}, {"data": 4, "fsdp": 4}])
def test_a_mesh_that_does_not_fit_is_an_error(axes):
  with pytest.raises(UserError, match="mesh"):
    sharding.make_mesh(MeshConfig(**axes), 8)


def test_rows_are_split_over_the_devices():
  mesh = sharding.make_mesh(MeshConfig(), 8)
  placed = sharding.global_batch(mesh, {"x": np.arange(16).reshape(8, 2)})["x"]
  assert placed.sharding.spec == P(("data", "fsdp"))
  np.testing.assert_array_equal(placed, np.arange(16).reshape(8, 2))


def test_a_batch_that_does_not_divide_is_an_error():
  with pytest.raises(UserError, match="try --config"):
    sharding.make_mesh(MeshConfig(), 9)
