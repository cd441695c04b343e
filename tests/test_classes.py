"""The evidence for the most probable classes: the pictures against the mirrors, the figure against the pictures."""

import numpy as np
import pytest
import torch

from analysis.channels import robust_limit
from analysis.inspection import inspect
from analysis.reconstruction import mirrors_by_rule
from analysis.settings import Settings
from figures import FIGURES
from figures.classes import MAPS, RULES_SHOWN, class_evidence
from figures.comparison import evidence_over_image
from figures.image_grid import diverging_rgb, to_array
from figures.style import format_percent, format_short, format_two_digits
from reverse_network import RULES, ReverseResNet18, class_signal


def test_classes_probabilities_and_pictures(random_network):
    images = torch.randn(1, 3, 64, 48, dtype=torch.float64)
    numbers, pictures = class_evidence(random_network, mirrors_by_rule(random_network, RULES), images, 4)
    classes = numbers["classes"]
    with torch.no_grad():
        logits = random_network(images)[0]
        trace = random_network.trace(images.expand(4, -1, -1, -1))
        signal = class_signal(random_network, trace.features["conv5_x"], classes)
    assert classes == logits.argsort(descending=True)[:4].tolist()
    assert numbers["probabilities"] == pytest.approx(logits.softmax(0)[classes].tolist(), rel=1e-9)
    assert list(pictures) == [MAPS, *RULES]
    for rule in RULES:
        with torch.no_grad():
            expected = ReverseResNet18(random_network, rule)(signal, "conv5_x", trace)
        assert pictures[rule].shape == (4, 3, 64, 48) and expected.norm() > 0
        assert (pictures[rule] - expected).norm() < 1e-10 * expected.norm()
    assert len(class_evidence(random_network, {}, images, 20)[0]["classes"]) == 10  # no more than there are


def test_class_activation_maps_and_biases_are_the_logits(random_network):
    """In float64, of an image that is not square."""
    images = torch.randn(1, 3, 70, 130, dtype=torch.float64)
    numbers, pictures = class_evidence(random_network, {}, images, 10)
    with torch.no_grad():
        logits = random_network(images)[0, numbers["classes"]]
        features = random_network.trace(images).features["conv5_x"][0]
        weights = random_network.fc.weight[numbers["classes"]]
    maps = pictures[MAPS]
    assert maps.shape == (10, 3, 5) and maps.dtype == torch.float64
    assert torch.allclose(maps[4, 1, 2], weights[4] @ features[:, 1, 2], rtol=1e-12)
    sums = maps.mean((1, 2)) + torch.tensor(numbers["biases"], dtype=torch.float64)
    assert (sums - logits).norm() < 1e-12 * logits.norm()
    assert torch.tensor(numbers["logits"]).double().sub(logits).norm() < 1e-6 * logits.norm()


def test_the_figure_shows_each_class_on_one_scale_per_column(small_run):
    inspection = inspect(small_run / "model.pt", Settings(), "cpu")
    (path, figure), (file, (entry,)) = FIGURES["classes"].draw(inspection, Settings())
    assert str(path) == str(file) == "classes"
    inputs = inspection.inputs(inspection.pictures[0].image[None])
    mirrors = mirrors_by_rule(inspection.network, RULES_SHOWN)
    numbers, pictures = class_evidence(inspection.network, mirrors, inputs)
    picture = to_array(inspection.pictures[0].image) / 255
    grid = np.reshape(figure.get_axes(), (4, 4))
    assert np.allclose(grid[0, 0].get_images()[0].get_array(), picture, atol=1e-6)
    for column, (name, each) in enumerate(pictures.items(), 1):
        each = torch.cat([each, each[:1] - each[1:2]])  # the last row is the difference of the first two
        limit = each.abs().max().item() if name == MAPS else max(robust_limit(each))
        over = evidence_over_image(picture, each, limit) if name == MAPS else diverging_rgb(to_array(each), limit)
        assert np.allclose([axes.get_images()[0].get_array() for axes in grid[:, column]], over, atol=1e-4)
        assert entry["scale"][name] == pytest.approx(limit)
        assert grid[0, column].get_title() == f"{name}\n±{format_short(limit)}"
    labels = [axes.get_ylabel() for axes in figure.get_axes() if axes.get_ylabel()]
    for label, number, probability, logit, bias in zip(labels, *numbers.values(), strict=False):
        values = f"logit {format_two_digits(logit)}\nbias {format_two_digits(bias)}"
        assert label == f"{inspection.metadata.classes[number]}\n{format_percent(probability)}\n{values}"
    first, second = (inspection.metadata.classes[n] for n in numbers["classes"][:2])
    assert labels[3].startswith(f"{first}\n\N{MINUS SIGN} {second}\n")
    assert entry["image"] == inspection.pictures[0].origin
    assert entry["classes"] == [inspection.metadata.classes[n] for n in numbers["classes"]]
    assert entry["logits"] == numbers["logits"] and entry["maps"] == pictures[MAPS].tolist()
    assert entry["correlation"].keys() == {MAPS, *RULES_SHOWN}
    for rule in RULES_SHOWN:
        pairs = np.corrcoef(pictures[rule].flatten(1).numpy())[np.triu_indices(3, 1)]
        assert entry["correlation"][rule] == pytest.approx(pairs.mean(), abs=1e-5)
    texts = [axes.get_xlabel() for axes in figure.get_axes() if axes.get_xlabel()]
    assert texts[1:] == [format_two_digits(value) for value in entry["correlation"].values()]
