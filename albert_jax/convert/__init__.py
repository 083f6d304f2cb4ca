"""Reads and writes weights. A Hugging Face directory is the exchange format."""

from albert_jax.convert.google_tf1 import load_optimizer
from albert_jax.convert.hf import save
from albert_jax.convert.load import about, config_of, fit, load, load_symbols, load_tokenizer

__all__ = ["about", "config_of", "fit", "load", "load_optimizer", "load_symbols", "load_tokenizer", "save"]
