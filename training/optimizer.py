"""Learning rate and image size as functions of the iteration alone, so resuming needs no state."""

import math

SCHEDULES = ("step", "exponential", "linear", "cosine", "onecycle")
DEFAULT_GAMMA = {"step": 0.1, "exponential": 0.35 ** (1 / 30)}


def image_size(epoch: int, sizes: list[tuple[int, int]]) -> int:
    """The image size of an epoch counted from 0; sizes: (image size, number of epochs at it), in order."""
    for size, epochs in sizes:
        if epoch < epochs:
            return size
        epoch -= epochs
    raise ValueError(f"the plan {sizes} ends before this epoch")


def learning_rate(step: int, total_steps: int, steps_per_epoch: int, args) -> float:
    """The learning rate of iteration `step`, counted from 0.

    args holds schedule, lr (the peak), lr_gamma and, in epochs, lr_step_size and lr_warmup_epochs, as train.py's flags.

    The curves are those of torch.optim.lr_scheduler: StepLR and ExponentialLR by epoch; CosineAnnealingLR and
    OneCycleLR (arXiv:1708.07120) by iteration. "linear" falls to 0 from the end of the warm-up on. During the warm-up
    every curve is multiplied by a factor that rises from 0 to 1.
    """
    warmup = args.lr_warmup_epochs * steps_per_epoch
    factor = (step + 1) / warmup if step < warmup else 1.0
    return factor * _scheduled(step, total_steps, steps_per_epoch, warmup, args)


def _scheduled(step: int, total_steps: int, steps_per_epoch: int, warmup: float, args) -> float:
    if args.schedule == "step":
        return args.lr * args.lr_gamma ** (step // steps_per_epoch // args.lr_step_size)
    if args.schedule == "exponential":
        return args.lr * args.lr_gamma ** (step // steps_per_epoch)
    if args.schedule == "linear":
        return args.lr * (1 if step < warmup else (total_steps - step) / (total_steps - warmup))
    if args.schedule == "cosine":
        return cosine(args.lr, 0, step / total_steps)
    peak, last = 0.3 * total_steps - 1, total_steps - 1
    if step <= peak:
        return cosine(args.lr / 25, args.lr, step / peak)
    return cosine(args.lr, args.lr / 25e4, (step - peak) / (last - peak))


def cosine(start: float, end: float, share: float) -> float:
    """Half a cosine wave from `start` (share 0) to `end` (share 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
