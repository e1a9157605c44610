"""Benchmarks: each is one command that prints one table and keeps its numbers as JSON."""
