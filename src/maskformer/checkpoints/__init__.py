"""Checkpoints: reading the authors' files, finding and loading ours, and the list of the published models.

Importing this package loads neither torch nor transformers; its modules do when they need them.
"""
