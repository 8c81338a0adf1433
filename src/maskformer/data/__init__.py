"""Annotation formats, transforms, collation, and drawn scenes with exact labels."""
