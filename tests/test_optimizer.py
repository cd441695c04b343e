"""The learning rate against torch's schedulers."""

import pytest
import torch

import train
from training.optimizer import SCHEDULES, learning_rate
from training.plan import Plan


class TestLearningRate:
    def scheduled(self, scheduler, optimizer, steps, by=1):
        """What a torch scheduler gives at each step, stepping every `by` iterations."""
        rates = []
        for step in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if (step + 1) % by == 0:
                scheduler.step()
        return rates

    def optimizer(self):
        return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)

    def ours(self, steps, steps_per_epoch, *flags):
        settings = train.make_settings(train.parse_args(["--lr", "0.2", *flags]), torch.device("cpu")).optimization
        plan = Plan(((32, -(-steps // steps_per_epoch)),), steps_per_epoch, steps)
        return [learning_rate(step, plan, settings) for step in range(steps)]

    def test_step(self):
        optimizer = self.optimizer()
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 20, 0.1)
        expected = self.scheduled(scheduler, optimizer, 50 * 4, by=4)
        assert self.ours(50 * 4, 4) == pytest.approx(expected, rel=1e-12)

    def test_exponential_of_report_b(self):
        optimizer = self.optimizer()
        gamma = 0.35 ** (1 / 30)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma)
        expected = self.scheduled(scheduler, optimizer, 31 * 4, by=4)
        ours = self.ours(31 * 4, 4, "--schedule", "exponential")
        assert ours == pytest.approx(expected, rel=1e-12)
        assert ours[0] == 0.2 and ours[-1] == pytest.approx(0.07)  # 0.1 -> 0.035 at epoch 30, for a rate of 0.1

    def test_warm_up(self):
        plain, warm = (self.ours(40, 4, "--lr-warmup-epochs", epochs) for epochs in ("0", "2.5"))
        assert warm[:10] == pytest.approx([0.02 * step for step in range(1, 11)]) and warm[10:] == plain[10:]

    def test_cosine(self):
        optimizer = self.optimizer()
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 120)
        expected = self.scheduled(scheduler, optimizer, 120)
        assert self.ours(120, 4, "--schedule", "cosine") == pytest.approx(expected, rel=1e-9)

    def test_linear_after_a_warm_up(self):
        """LinearLR up, then LinearLR down to 0."""
        optimizer = self.optimizer()
        up = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 10, 1, total_iters=9)
        down = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=30)
        both = torch.optim.lr_scheduler.SequentialLR(optimizer, [up, down], [10])
        expected = self.scheduled(both, optimizer, 40)
        ours = self.ours(40, 4, "--schedule", "linear", "--lr-warmup-epochs", "2.5")
        assert ours == pytest.approx(expected, rel=1e-9)
        assert max(ours) == 0.2 and 0 < ours[-1] < 0.01

    @pytest.mark.parametrize("steps", [120, 97, 7])
    def test_onecycle(self, steps):
        optimizer = self.optimizer()
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps, cycle_momentum=False)
        rates = []
        for _ in range(steps):
            rates.append(scheduler.get_last_lr()[0])
            optimizer.step()
            if len(rates) < steps:
                scheduler.step()
        assert self.ours(steps, 4, "--schedule", "onecycle") == pytest.approx(rates, rel=1e-9, abs=1e-12)

    @pytest.mark.parametrize("schedule", SCHEDULES)
    @pytest.mark.parametrize("steps", [1, 2, 3])
    def test_the_shortest_runs(self, schedule, steps):
        rates = self.ours(steps, 1, "--schedule", schedule)
        assert all(0 < rate <= 0.2 for rate in rates)
