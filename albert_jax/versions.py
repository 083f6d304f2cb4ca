"""Versions of this package and of the packages it uses."""

import importlib.metadata

NOT_INSTALLED = "0+not-installed"


def installed(package: str = "albert-jax") -> str:
  """Returns the version of a package as pip installed it.

  Args:
    package: the name of the package on the package index.

  Returns:
    the version, or `NOT_INSTALLED`: a checkout may run without being installed, by PYTHONPATH alone.
  """
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return NOT_INSTALLED
