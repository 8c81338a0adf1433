"""Exported graphs: a checkpoint as one ONNX file or torch program, with or without post-processing."""
