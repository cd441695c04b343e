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


def test_the_lines_are_the_history():
    losses, accuracies = training_curves.training_curves(HISTORY).get_axes()
    train, test = (line.get_xydata().tolist() for line in losses.lines[:2])
    assert train == [[300, 2.0], [600, 1.5], [900, 1.0]] and test == [[700, 1.4], [1400, 1.2]]
    assert accuracies.lines[1].get_ydata().tolist() == pytest.approx([55, 62.5])


def test_last_values_and_steps_of_the_learning_rate():
    for axes, labels in zip(
        training_curves.training_curves(HISTORY).get_axes(),
        (["train 1.000", "test 1.200"], ["train 70.00 %", "test 62.50 %"]),
        strict=True,
    ):
        assert [text.get_text() for text in axes.get_legend().get_texts()] == labels
        assert [line.get_xdata()[0] for line in axes.lines[2:]] == [600]


def test_the_few_iterations_of_a_runs_end_are_no_point():
    end = HISTORY[3] | {"step": 910, "loss": 9.0}
    again = HISTORY[3] | {"step": 1210, "loss": 0.5}  # of a run that was joined
    (train, *_), _ = (axes.lines for axes in training_curves.training_curves([*HISTORY, end, again], 0.1).axes)
    assert train.get_xydata().tolist() == [[300, 2.0], [600, 1.5], [900, 1.0], [1210, 0.5]]
    assert train.get_label() == "train 0.500 (label smoothing 0.1)"


def test_the_caption_names_what_is_drawn():
    sizes = [entry | {"image_size": 32 * entry["epoch"]} for entry in HISTORY]
    texts = [training_curves.training_curves(history).get_supxlabel() for history in (HISTORY, sizes, HISTORY[:3])]
    assert ["Dotted" in text for text in texts] == [True, True, False]
    assert ["Bands" in text for text in texts] == [False, True, False]
    assert_inside(training_curves.training_curves(sizes, 0.1))


def test_a_smooth_schedule_has_no_steps():
    rates = [0.1 * 0.5**n for n in range(8)]
    history = [HISTORY[0] | {"step": n, "learning_rate": rate} for n, rate in enumerate(rates)]
    assert len(training_curves.training_curves(history).get_axes()[0].lines) == 1


@pytest.mark.parametrize("count", [0, 1, 3])
def test_short_histories(count):
    training_curves.training_curves(HISTORY[:count]).draw_without_rendering()
