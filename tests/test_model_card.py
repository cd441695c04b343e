"""The numbers of a model card, on cases that were published or can be counted by hand."""

import pytest
import torch

from benchmarks import model_card


@pytest.mark.parametrize(
    "correct, count, low, high",
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals(correct, count, low, high):
    """Table I of Newcombe 1998, Statistics in Medicine 17."""
    assert model_card.wilson_interval(correct, count) == pytest.approx((low, high), abs=5e-5)


def test_calibration_error():
    """Two bins: 0.6 and 0.65 are right once, 0.9 and 1.0 always: (|1 - 1.25| + |2 - 1.9|) / 4."""
    confidence, correct = torch.tensor([0.6, 0.65, 0.9, 1.0]), torch.tensor([True, False, True, True])
    assert model_card.calibration_error(confidence, correct, bins=4) == pytest.approx((0.25 + 0.1) / 4, abs=1e-6)
    assert model_card.calibration_error(torch.tensor([0.0, 1.0]), torch.tensor([False, True])) == 0


def test_lines():
    """Of three cats, two are taken for dogs; the dog is right."""
    labels = torch.tensor([0, 0, 0, 1])
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [0.0, 2.0]])
    lines = model_card.describe(torch.stack([logits, logits.roll(1, 0)]), labels, ("cat", "dog"))
    assert lines[0].startswith("accuracy 50.00%") and "2 of cat predicted as dog" in lines
    assert any(line.startswith("| cat | 33.3 % |") and line.endswith("| 100.0 % |") for line in lines)
    assert any(line.startswith("| dog | 100.0 % |") and line.endswith("| 33.3 % |") for line in lines)


def test_script(small_run, capsys):
    model_card.main(["--ckpt", str(small_run / "model.pt"), "--data", str(small_run.parent / "pictures")])
    out = capsys.readouterr().out
    assert "accuracy" in out and "SHA-256" in out
