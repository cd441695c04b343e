import json

import numpy as np
import pytest
import torch
from conftest import write_folder

import visualizer
from analysis.inspection import Subject
from dataset import sources
from dataset.preprocess import Preprocess
from figures import scores
from runtime import checkpoint


@pytest.fixture
def subject(small_run):
    return Subject(visualizer.parse_args(["--ckpt", str(small_run / "model.pt"), "--device", "cpu"]))


@pytest.fixture
def truth(small_run):
    """Labels and probabilities of the test images, by the network alone."""
    network, info = checkpoint.load_network(small_run / "model.pt")
    images, labels, _ = sources.load(str(small_run.parent / "pictures"), "test")
    with torch.inference_mode():
        return labels, network(Preprocess(32, info.mean, info.std)(images)).softmax(1)


def test_confusion_counts_pairs():
    counts = scores.confusion(np.array([0, 0, 2, 2, 2]), np.array([0, 1, 2, 2, 0]), 3)
    assert counts.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 2]]


def test_the_matrix_drawn_is_that_of_the_network(subject, truth):
    labels, probabilities = truth
    ((path, figure),) = scores.draw_confusion_matrix(subject)
    shares = figure.get_axes()[0].get_images()[0].get_array()
    predicted = probabilities.argmax(1)
    for row in range(3):
        for column in range(3):
            expected = (predicted[labels == row] == column).float().mean().item() * 100
            assert shares[row, column] == pytest.approx(expected, abs=1e-4)
    assert f"accuracy {(predicted == labels).float().mean():.2%} on 12 test images" in figure.get_suptitle()


def test_mistakes_come_with_the_surest_first(subject, truth):
    labels, probabilities = truth
    confidence, predicted = probabilities.max(1)
    wrong = [n for n in confidence.sort(descending=True).indices.tolist() if predicted[n] != labels[n]]
    ((_, figure),) = scores.draw_mistakes(subject)
    captions = [axes.get_title() for axes in figure.get_axes() if axes.get_title()]
    expected = [
        f"{subject.classes[labels[n]]}, image {n}\nas {subject.classes[predicted[n]]}, {confidence[n]:.1%}"
        for n in wrong
    ]
    assert captions == expected


def test_of_a_limited_search(small_run, truth):
    flags = ["--ckpt", str(small_run / "model.pt"), "--device", "cpu", "--limit", "5"]
    subject = Subject(visualizer.parse_args(flags))
    labels, probabilities = truth
    searched = [0, 2, 4, 7, 9]
    right = probabilities.argmax(1) == labels
    assert scores.summary(subject)["accuracy"] == pytest.approx(right[searched].float().mean().item())
    ((_, figure),) = scores.draw_mistakes(subject)
    wrong = sorted((n for n in searched if not right[n]), key=lambda n: -probabilities[n].max())
    titles = [axes.get_title() for axes in figure.get_axes() if axes.get_title()]
    assert [int(title.split("image ")[1].split()[0]) for title in titles] == wrong and wrong
    pictures = [axes.get_images()[0].get_array() for axes in figure.get_axes() if axes.get_title()]
    for picture, n in zip(pictures, wrong, strict=True):
        assert np.allclose(picture, subject.test[0][n].permute(1, 2, 0) / 255, atol=1e-6)


def test_the_summary(subject, truth):
    labels, probabilities = truth
    right = probabilities.argmax(1) == labels
    found = json.loads(json.dumps(scores.summary(subject)))
    assert found["accuracy"] == pytest.approx(right.float().mean().item())
    assert found["accuracy_by_class"] == {
        name: pytest.approx(right[labels == n].float().mean().item()) for n, name in enumerate(subject.classes)
    }
    assert found["images_searched"] == 12 and found["settings"]["device"] == "cpu"
    assert found["dead_channels"].keys() == {"conv1", "conv5_x"}


def test_other_classes_than_the_networks_have_no_accuracy(small_run, tmp_path, capsys):
    folder = write_folder(tmp_path / "other", classes=("disk", "ring", "cross"))
    flags = ["--ckpt", str(small_run / "model.pt"), "--data", str(folder), "--device", "cpu"]
    subject = Subject(visualizer.parse_args(flags))
    assert not list(scores.draw_confusion_matrix(subject)) and not list(scores.draw_mistakes(subject))
    assert "accuracy" not in scores.summary(subject)
    assert capsys.readouterr().out.count("left out") == 2
