"""In a checkout, makes its configs/ importable as albert_jax.configs. An installed package has that folder instead."""

import pathlib

__path__ = [str(pathlib.Path(__file__).parents[1] / "configs")]
