"""What channels respond to, as tensors."""
