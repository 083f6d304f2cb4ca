"""Extractive summaries: the task, and how summaries are scored."""

from albert_jax.tasks.summarize.task import SPEC

__all__ = ["SPEC"]
