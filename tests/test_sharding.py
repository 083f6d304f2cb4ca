import types

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from albert_jax.errors import UserError
from albert_jax.training import sharding
from albert_jax.training.sharding import MeshConfig


def test_the_mesh_takes_all_devices():
  mesh = sharding.make_mesh(MeshConfig(), 8)
  assert mesh.shape == {"data": len(jax.devices()), "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
  "axes", [{"data": 7}, {"data": 0}, {"data": -2}, {"data": 4, "fsdp": 4}, {"data": -1, "fsdp": 2**32, "tensor": 2**32}]
)
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


@pytest.mark.parametrize(
  ("hosts", "tensor", "expected"), [([0, 0, 1, 1], 2, True), ([0, 1, 0, 1], 2, False), ([0, 0, 1, 1], 4, False)]
)
def test_rows_are_of_one_host(hosts, tensor, expected):
  devices = np.array([types.SimpleNamespace(process_index=host) for host in hosts])
  assert sharding._hosts_have_own_rows(devices.reshape(-1, 1, tensor)) is expected


def test_where_the_wiring_would_share_rows_devices_are_taken_host_by_host(monkeypatch):
  answers = [False, True]
  monkeypatch.setattr(sharding, "_hosts_have_own_rows", lambda _: answers.pop(0))
  mesh = sharding.make_mesh(MeshConfig(tensor=2), 8, jax.devices()[::-1])
  assert list(mesh.devices.flat) == jax.devices()
  assert mesh.shape == {"data": len(jax.devices()) // 2, "fsdp": 1, "tensor": 2}
  assert set(mesh.axis_types) == {AxisType.Auto}
