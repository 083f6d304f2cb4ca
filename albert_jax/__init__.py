"""ALBERT in JAX. The whole public interface: a config, plain parameters, and functions of them."""

from albert_jax.model import VARIANTS, AlbertConfig, apply, init, param_count

__all__ = ["VARIANTS", "AlbertConfig", "apply", "init", "param_count"]
