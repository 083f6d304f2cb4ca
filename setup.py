"""Installs configs/ at the top of the checkout as albert_jax.configs; all other metadata is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
  packages=[*find_packages(include=["albert_jax*"]), "albert_jax.configs"],
  package_dir={"albert_jax.configs": "configs"},
)
