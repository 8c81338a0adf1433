"""Images to tensors and logits to segments: pure functions, and the processor that bundles them."""
