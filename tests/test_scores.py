"""Accuracy, confusion and mistakes, for logits chosen by the test."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import write_folder

from analysis.activations import SearchResult
from analysis.inspection import inspect
from analysis.settings import Settings
from figures import scores
from figures.registry import NotDrawn

LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])  # of the test images
PREDICTED = torch.tensor([0, 1, 0, 2, 1, 1, 1, 1, 0, 2, 1, 0])
MARGINS = torch.tensor([3.0, 1, 2, 4, 1, 1, 1, 1, 6, 1, 2, 5])  # of the predicted class's logit


@pytest.fixture(scope="module")
def plain(small_run):
    return inspect(small_run / "model.pt", Settings(), "cpu")


@pytest.fixture(scope="module")
def inspection(plain):
    """A search of all test images but the second, of a network that predicts PREDICTED."""
    assert torch.equal(plain.labels, LABELS)
    searched = torch.tensor([0, *range(2, 12)])
    logits = (torch.nn.functional.one_hot(PREDICTED, 3) * MARGINS[:, None])[searched]
    search = SearchResult(plain.search.top, plain.search.peaks, logits)
    return replace(plain, searched=searched, search=search)


def test_the_matrix_shows_percent_of_the_true_class(inspection):
    ((_, figure),) = scores.draw_confusion_matrix(inspection, Settings())
    axes = figure.get_axes()[0]
    shares = axes.get_images()[0].get_array()
    assert np.allclose(shares.filled(0), [[0, 0, 100 / 3], [0, 0, 0], [50, 25, 0]]) and shares.mask.diagonal().all()
    assert axes.get_images()[0].get_clim() == (0, 50)
    numbers = {text.get_position(): text.get_text() for text in axes.texts}
    assert numbers[0, 0] == "66.7 %" and numbers[1, 1] == "100.0 %" and numbers[0, 2] == "50.0 %" and len(numbers) == 6
    assert "Accuracy 63.64 % on 11 test images" in figure.get_suptitle()


@pytest.mark.parametrize("count", [10, 13, 20])
def test_numbers_of_the_matrix_fit_their_cells(count):
    figure = scores.confusion_figure(np.eye(count, dtype=int), ["of\ntwo lines"] * count)
    figure.draw_without_rendering()
    axes = figure.get_axes()[0]
    assert axes.get_yticklabels()[0].get_text() == "of two lines (1)" and len(axes.texts) == count
    assert max(text.get_window_extent().width for text in axes.texts) <= axes.get_window_extent().width / count


def test_mistakes_come_with_the_surest_first(inspection):
    ((_, figure),) = scores.draw_mistakes(inspection, Settings())
    shown = [axes for axes in figure.get_axes() if axes.get_title("left")]
    confidence = [np.exp(margin) / (np.exp(margin) + 2) for margin in (6, 5, 4, 2)]
    names = inspection.metadata.classes
    assert [axes.get_title("left") for axes in shown] == [
        f"{names[LABELS[n]]}, image {n}\nas {names[PREDICTED[n]]}, {100 * share:.1f} %"
        for n, share in zip((8, 11, 3, 10), confidence, strict=True)
    ]
    assert np.allclose(shown[2].get_images()[0].get_array(), inspection.images[3].permute(1, 2, 0) / 255, atol=1e-6)
    assert "4 most confident of 4 mistakes on 11 test images" in figure.get_suptitle()


def test_the_summary(inspection):
    found = json.loads(json.dumps(scores.summary(inspection, Settings(top=4))))
    assert found["accuracy"] == pytest.approx(7 / 11) and found["images_searched"] == 11
    assert list(found["accuracy_by_class"]) == list(inspection.metadata.classes)
    assert list(found["accuracy_by_class"].values()) == pytest.approx([2 / 3, 1.0, 0.25])
    assert found["settings"]["device"] == "cpu" and found["settings"]["top"] == 4
    assert found["dead_channels"].keys() == {"conv1", "conv5_x"}


def test_no_mistakes_and_other_classes_than_the_networks(inspection, small_run, tmp_path, capsys):
    perfect = replace(inspection, labels=PREDICTED)
    with pytest.raises(NotDrawn, match="none in 11 test images"):
        list(scores.draw_mistakes(perfect, Settings()))
    ((_, figure),) = scores.draw_confusion_matrix(perfect, Settings())
    assert "No mistakes" in figure.get_supxlabel()
    folder = write_folder(tmp_path / "other", classes=("disk", "ring", "cross"))
    other = inspect(small_run / "model.pt", Settings(), "cpu", source=str(folder))
    assert "not those the network was trained on" in capsys.readouterr().out
    for draw in (scores.draw_confusion_matrix, scores.draw_mistakes):
        with pytest.raises(NotDrawn, match="test images of the network's classes"):
            list(draw(other, Settings()))
    assert "accuracy" not in scores.summary(other, Settings())
