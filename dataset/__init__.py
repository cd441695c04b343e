"""Data sets as uint8 tensors, and the batches made of them."""
