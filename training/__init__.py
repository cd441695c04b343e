"""One training run: the step, its acceleration, the learning rate, evaluation, checkpoints, several processes."""
