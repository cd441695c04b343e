"""The evidence for the most probable classes: the pictures against the mirrors, the figure against the pictures."""

import numpy as np
import pytest
import torch
from conftest import assert_inside

import visualizer
from analysis.channels import robust_limit
from analysis.inspection import inspect
from analysis.reconstruction import mirrors_by_rule
from analysis.settings import Settings
from figures import FIGURES
from figures.classes import class_evidence, classes_figure
from figures.image_grid import diverging_rgb, to_array
from figures.style import format_percent
from reverse_network import RULES, ReverseResNet18, class_signal

RANDOM = np.random.RandomState(0)


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", Settings(), "cpu")


def test_classes_probabilities_and_pictures(random_network):
    images = torch.randn(1, 3, 64, 48, dtype=torch.float64)
    probabilities, by_rule = class_evidence(random_network, mirrors_by_rule(random_network, RULES), images, 4)
    classes = list(probabilities)
    with torch.no_grad():
        logits = random_network(images)[0]
        trace = random_network.trace(images.expand(4, -1, -1, -1))
        signal = class_signal(random_network, trace.features["conv5_x"], classes)
    assert classes == logits.argsort(descending=True)[:4].tolist()
    assert list(probabilities.values()) == pytest.approx(logits.softmax(0)[classes].tolist(), rel=1e-9)
    assert list(by_rule) == list(RULES)
    for rule, pictures in by_rule.items():
        with torch.no_grad():
            expected = ReverseResNet18(random_network, rule)(signal, "conv5_x", trace)
        assert pictures.shape == (4, 3, 64, 48) and expected.norm() > 0
        assert (pictures - expected).norm() < 1e-10 * expected.norm()
    assert len(class_evidence(random_network, {}, images, 20)[0]) == 10  # no more classes than there are


def test_the_figure_shows_each_class_under_each_rule(inspection):
    ((path, figure),) = FIGURES["classes"].draw(inspection, Settings())
    assert str(path) == "classes"
    picture = inspection.pictures[0].image[None]
    mirrors = mirrors_by_rule(inspection.network, RULES)
    probabilities, pictures = class_evidence(inspection.network, mirrors, inspection.inputs(picture))
    image, *tiles = [axes.get_images()[0].get_array() for axes in figure.get_axes()]
    assert np.allclose(image, to_array(picture[0]) / 255, atol=1e-6)
    expected = [
        diverging_rgb(to_array(pictures[rule][row]), robust_limit(pictures[rule])[row])
        for row in range(3)
        for rule in RULES
    ]
    assert len(tiles) == 9 and np.allclose(tiles, expected, atol=1e-4)
    assert [axes.get_title() for axes in figure.get_axes()[:4]] == ["image", *RULES]
    texts = [text.get_text() for text in figure.texts]
    for number, probability in probabilities.items():
        assert f"{inspection.metadata.classes[number]}\n{format_percent(probability)}" in texts


def test_no_text_leaves_the_figure():
    pictures = {rule: torch.from_numpy(RANDOM.randn(3, 3, 16, 16)) for rule in RULES}
    labels = ["American_St…\n100 %"] * 3
    assert_inside(classes_figure(RANDOM.rand(16, 16, 3), labels, pictures, "a_long_file_name_" * 9))


def test_ones_own_pictures_need_no_test_images(small_run, tmp_path):
    picture = next((small_run.parent / "pictures" / "test" / "ring").iterdir())
    flags = ["--ckpt", str(small_run / "model.pt"), "--data", str(tmp_path / "none"), "--device", "cpu"]
    visualizer.main([*flags, "--figures", "classes", "--images", str(picture), "--out", str(tmp_path / "plots")])
    assert [path.name for path in (tmp_path / "plots" / picture.stem).iterdir()] == ["classes.png"]


def test_percentages():
    assert [format_percent(share) for share in (0, 0.001, 0.734, 1)] == ["0 %", "<1 %", "73 %", "100 %"]
