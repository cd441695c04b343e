"""The curves against the history they are drawn from."""

import pytest
from conftest import assert_inside

from figures import training_curves

HISTORY = [
    {"kind": "train", "epoch": 1, "step": 300, "loss": 2.0, "accuracy": 0.25, "learning_rate": 0.1},
    {"kind": "train", "epoch": 1, "step": 600, "loss": 1.5, "accuracy": 0.5, "learning_rate": 0.1},
    {"kind": "test", "epoch": 1, "step": 700, "loss": 1.4, "accuracy": 0.55},
    {"kind": "train", "epoch": 2, "step": 900, "loss": 1.0, "accuracy": 0.7, "learning_rate": 0.01},
    {"kind": "test", "epoch": 2, "step": 1400, "loss": 1.2, "accuracy": 0.625},
]


def test_the_lines_are_the_history_with_last_values_and_steps_of_the_learning_rate():
    losses, accuracies = training_curves.training_curves(HISTORY, {}).axes
    train, test, step = (line.get_xydata().tolist() for line in losses.lines)
    assert train == [[300, 2.0], [600, 1.5], [900, 1.0]] and test == [[700, 1.4], [1400, 1.2]] and step[0][0] == 600
    assert accuracies.lines[1].get_ydata().tolist() == pytest.approx([55, 62.5])
    texts = [text.get_text() for axes in (losses, accuracies) for text in axes.get_legend().get_texts()]
    assert texts == ["train 1.000", "test 1.200", "train 70.00 %", "test 62.50 %"]


def test_the_few_iterations_of_a_runs_end_are_no_point():
    end = HISTORY[3] | {"step": 910, "loss": 9.0}
    again = [HISTORY[3] | {"step": step, "loss": 0.5} for step in (1210, 1360)]  # of a run that was joined
    figure = training_curves.training_curves([*HISTORY, end, *again], {"label_smoothing": 0.1})
    (train, *_), _ = (axes.lines for axes in figure.axes)
    assert train.get_xydata().tolist() == [[300, 2.0], [600, 1.5], [900, 1.0], [1210, 0.5], [1360, 0.5]]
    assert train.get_label() == "train 0.500 (label smoothing 0.1)"


def test_sizes_have_bands_and_are_not_connected():
    sizes = [entry | {"image_size": 32 * entry["epoch"]} for entry in HISTORY]
    figure = training_curves.training_curves(sizes, {"init": "runs/old/model.pt"})
    for axes in figure.axes:
        assert [text.get_text() for text in axes.texts] == ["32 px", "64"]
        assert [line.get_xdata().tolist() for line in axes.lines[1:3]] == [[700], [1400]]
    assert all(words in figure.get_supxlabel() for words in ("Bands", "Dotted", "the weights of model.pt"))
    assert_inside(figure)


def test_a_smooth_schedule_has_no_steps():
    history = [HISTORY[0] | {"step": n, "learning_rate": 0.1 * 0.5**n} for n in range(8)]
    figure = training_curves.training_curves(history, {})
    assert len(figure.axes[0].lines) == 1 and "Dotted" not in figure.get_supxlabel()
    for count in (0, 1, 3):  # short histories
        training_curves.training_curves(HISTORY[:count], {}).draw_without_rendering()
