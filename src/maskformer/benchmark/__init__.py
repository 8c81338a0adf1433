"""Measurements against transformers: the same work on both sides, each in its own process."""
