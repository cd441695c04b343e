"""Checkpoints, the command line, devices and signals."""
