"""Answers over HTTP: requests are admitted, batched, segmented and answered in one process, with a page to try it."""
