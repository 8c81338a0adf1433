"""Metrics with the official semantics: mean IoU, panoptic quality, average precision, and the loop that feeds them."""
