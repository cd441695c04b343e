"""The learning rate as a function of the iteration's number alone, so resuming needs no state."""

import math

SCHEDULES = ("step", "exponential", "cosine", "onecycle")
DEFAULT_GAMMA = {"step": 0.1, "exponential": 0.35 ** (1 / 30)}


def learning_rate(step: int, total_steps: int, steps_per_epoch: int, args) -> float:
    """The learning rate of iteration `step`, counted from 0.

    args holds schedule, lr (the highest rate), gamma and, in epochs, lr_step and warm_up, as train.py's flags.

    The curves are those of torch.optim.lr_scheduler: StepLR and ExponentialLR by epoch, CosineAnnealingLR and
    OneCycleLR (arXiv:1708.07120) by iteration. While warming up, they are multiplied by a share that grows from 0 to 1.
    """
    warm_up = args.warm_up * steps_per_epoch
    share = (step + 1) / warm_up if step < warm_up else 1.0
    return share * _scheduled(step, total_steps, steps_per_epoch, args)


def _scheduled(step: int, total_steps: int, steps_per_epoch: int, args) -> float:
    if args.schedule == "step":
        return args.lr * args.gamma ** (step // steps_per_epoch // args.lr_step)
    if args.schedule == "exponential":
        return args.lr * args.gamma ** (step // steps_per_epoch)
    if args.schedule == "cosine":
        return cosine(args.lr, 0, step / total_steps)
    peak, last = 0.3 * total_steps - 1, total_steps - 1
    if step <= peak:
        return cosine(args.lr / 25, args.lr, step / peak)
    return cosine(args.lr, args.lr / 25e4, (step - peak) / (last - peak))


def cosine(start: float, end: float, share: float) -> float:
    """Half a cosine wave from `start` (share 0) to `end` (share 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
