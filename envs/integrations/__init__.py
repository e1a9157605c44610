"""Thin adapters for libraries that cannot take the vector env as it is."""
