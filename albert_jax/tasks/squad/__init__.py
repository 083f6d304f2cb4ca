"""Question answering: the task, its heads, the search for answers, and the official scores."""

from albert_jax.tasks.squad.task import SPEC

__all__ = ["SPEC"]
