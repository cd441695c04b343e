"""Data sets as uint8 tensors, and training batches."""
