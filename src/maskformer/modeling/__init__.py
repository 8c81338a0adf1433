"""The network, nothing else: backbone, pixel decoder, transformer decoder, heads, and the models built from them."""
