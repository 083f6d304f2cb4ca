"""Small models with random parameters, for the tests of conversions."""

import dataclasses

import numpy as np
from hypothesis import strategies as st

import albert_jax
from albert_jax import model, paths
from albert_jax.model.config import SHARE
from albert_jax.model.task_heads import HEADS as SHAPES

SMALL = albert_jax.AlbertConfig(
  vocab_size=40,
  embedding_size=6,
  hidden_size=12,
  num_hidden_layers=4,
  num_attention_heads=3,
  intermediate_size=20,
  max_position_embeddings=16,
)


def random_params(cfg, parts=model.OPTIONAL, heads=None, seed=0):
  rng = np.random.default_rng(seed)
  shapes = paths.flatten(model.shapes(cfg, parts))
  flat = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
  for head, classes in (heads or {}).items():
    for path, shape in SHAPES[head](cfg.hidden_size, classes).items():
      flat[f"{head}/{path}"] = rng.normal(size=shape).astype(np.float32)
  return paths.unflatten(flat)


def read_npz(path):
  """Returns {name: array} of a file; one that stays open fails whichever test runs when it is collected."""
  with np.load(path) as file:
    return dict(file)


def assert_same(a, b):
  a, b = paths.flatten(a), paths.flatten(b)
  assert a.keys() == b.keys()
  for path in a:
    assert a[path].dtype == b[path].dtype == np.float32
    np.testing.assert_array_equal(a[path], b[path], err_msg=path)


HEADS = {"classifier": 3, "span": 2, "squad_v2": 0}  # and how many classes


@st.composite
def configs(draw):
  layers = draw(st.integers(1, 5))
  return dataclasses.replace(
    SMALL,
    num_hidden_layers=layers,
    num_hidden_groups=draw(st.integers(1, layers)),
    inner_group_num=draw(st.integers(1, 2)),
    share=draw(st.sampled_from(SHARE)),
    embedding_size=draw(st.sampled_from([6, 12])),
    hidden_act=draw(st.sampled_from(["gelu", "gelu_new", "relu"])),
  )
