"""Tagging words, such as names: the task, and how entities are scored."""

from albert_jax.tasks.ner.task import SPEC

__all__ = ["SPEC"]
