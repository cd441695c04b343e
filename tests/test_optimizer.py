"""The learning rate against torch's schedulers."""

import pytest
import torch
from torch.optim import lr_scheduler

import train
from training.optimizer import SCHEDULES, learning_rate
from training.plan import Plan


def ours(steps, steps_per_epoch, flags):
    args = train.parse_args(["--lr", "0.2", *flags.split()])
    settings = train.make_settings(args, torch.device("cpu")).optimization
    plan = Plan(((32, -(-steps // steps_per_epoch)),), steps_per_epoch, steps)
    return [learning_rate(step, plan, settings) for step in range(steps)]


def linear_after_a_warm_up(optimizer, _):
    up = lr_scheduler.LinearLR(optimizer, 1 / 10, 1, total_iters=9)
    down = lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=30)
    return lr_scheduler.SequentialLR(optimizer, [up, down], [10])


def one_cycle(optimizer, steps):
    return lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps, cycle_momentum=False)


@pytest.mark.parametrize("flags, scheduler, steps, period", [
    ("", lambda optimizer, _: lr_scheduler.StepLR(optimizer, 20, 0.1), 50 * 4, 4),
    ("--schedule exponential", lambda optimizer, _: lr_scheduler.ExponentialLR(optimizer, 0.35 ** (1 / 30)), 124, 4),
    ("--schedule cosine", lr_scheduler.CosineAnnealingLR, 120, 1),
    ("--schedule linear --lr-warmup-epochs 2.5", linear_after_a_warm_up, 40, 1),
    *(("--schedule onecycle", one_cycle, steps, 1) for steps in (120, 97, 7)),
])  # fmt: skip
def test_it_is_torchs(flags, scheduler, steps, period):
    """period: iterations from one step of the scheduler to the next."""
    optimizer, rates = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2), []
    theirs = scheduler(optimizer, steps)
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % period == 0 and step + 1 < steps:
            theirs.step()
    assert ours(steps, 4, flags) == pytest.approx(rates, rel=1e-9, abs=1e-12)


def test_warm_up():
    plain, warm = ours(40, 4, ""), ours(40, 4, "--lr-warmup-epochs 2.5")
    assert warm[:10] == pytest.approx([0.02 * step for step in range(1, 11)]) and warm[10:] == plain[10:]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs(schedule, steps):
    assert all(0 < rate <= 0.2 for rate in ours(steps, 1, f"--schedule {schedule}"))
