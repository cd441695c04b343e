"""Random weights, rank correlation and Sobel edges, against their definitions; the figure and its numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_inside, assert_same_pictures

from analysis.channels import robust_limit
from analysis.crops import crop, crop_boxes
from analysis.importance import sobel_edges
from analysis.inspection import inspect
from analysis.reconstruction import ALL_RULES
from analysis.settings import Settings
from figures.image_grid import diverging_rgb, to_array
from figures.sanity import MODULES, draw_sanity, median_image, ranks, strongest_channels_of_images
from network import STAGES, ResNet18
from reverse_network import ReverseResNet18, isolate


def ranks_by_definition(values):
    """How many are smaller, and half of those that are equal."""
    smaller, equal = values < values[:, None], values == values[:, None]
    return smaller.sum(1) + (equal.sum(1) + 1) / 2


def test_ranks_by_definition():
    values = torch.from_numpy(np.random.RandomState(0).randint(0, 9, (3, 5, 8)))  # with many equals
    values[2] = 4
    assert torch.equal(ranks(values), torch.stack([ranks_by_definition(row.flatten()) for row in values]).double())


def test_edges_are_where_grey_changes():
    images = torch.zeros(1, 3, 8, 10)
    images[..., 5:] = 1
    edges = sobel_edges(images)
    assert edges.shape == images.shape and torch.equal(edges[0, 0], edges[0, 2])
    assert set(edges[0, 0].amax(0).nonzero().flatten().tolist()) == {4, 5}
    assert torch.allclose(edges[0, 0, :, 4], torch.ones(8))  # a step of 1
    assert not sobel_edges(torch.full((1, 3, 8, 8), 0.7)).abs().gt(1e-6).any()


SETTINGS = Settings(stages=("conv4_x",))
STEPS = {
    "top-down": {"trained": "", "conv4_x random": "4", "+ conv3_x": "43", "+ conv2_x": "432", "+ conv1": "4321"},
    "bottom-up": {"trained": "", "conv1 random": "1", "+ conv2_x": "12", "+ conv3_x": "123", "+ conv4_x": "1234"},
}
PARTS = {"1": ("conv1.", "bn1."), "2": ("layer1.",), "3": ("layer2.",), "4": ("layer3.",)}


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", SETTINGS, "cpu")


@pytest.fixture(scope="module")
def drawn(inspection):
    before = {name: value.clone() for name, value in inspection.network.state_dict().items()}
    (_, figure), (_, content) = draw_sanity(inspection, replace(SETTINGS, batch_size=7))
    assert all(torch.equal(before[name], value) for name, value in inspection.network.state_dict().items())
    return figure, content


@pytest.fixture(scope="module")
def expected(inspection, drawn):
    """direction -> step -> rule -> whole pictures of all images, each network with weights of its own."""
    images, channels = inspection.images[drawn[1]["images"]], drawn[1]["channels"]
    torch.manual_seed(0)
    fresh = ResNet18(3).state_dict()

    def pictures(stages):
        network = ResNet18(3).eval()
        prefixes = tuple(prefix for stage in stages for prefix in PARTS[stage])
        weights = inspection.network.state_dict()
        network.load_state_dict(weights | {key: fresh[key] for key in fresh if key.startswith(prefixes)})
        with torch.inference_mode():
            trace = network.trace(inspection.preprocess(images), "conv4_x")
            signal = isolate(trace.features["conv4_x"], channels)
            return {rule: ReverseResNet18(network, rule)(signal, "conv4_x", trace) for rule in ALL_RULES}

    return {direction: {name: pictures(stages) for name, stages in steps.items()} for direction, steps in STEPS.items()}


def test_stages_are_those_of_the_network():
    assert MODULES.keys() == set(STAGES)
    names = {name for parts in MODULES.values() for name in parts}
    assert names == {name for name, module in ResNet18().named_children() if list(module.parameters())} - {"fc"}


def test_the_median_image_activates_all_networks():
    values, other = [0.9, None, 0.1, 0.5, 0.4], [0.9, 0.3, 0.1, 0.5, 0.4]
    steps = {"trained": [1.0] * 5, "conv1 random": values, "+ conv2_x": values}
    for expected in (4, 4):  # of 0.1, 0.4, 0.5 and 0.9; of 0.1, 0.3, 0.4, 0.5 and 0.9
        rules = {name: dict.fromkeys(ALL_RULES, {"values": numbers}) for name, numbers in steps.items()}
        assert median_image({"top-down": rules}) == expected
        steps |= {"conv1 random": other, "+ conv2_x": other}


def test_every_network_under_every_rule(inspection, drawn, expected):
    """Own scale per tile; all cropped like the trained network's."""
    figure, content = drawn
    axes = iter(figure.get_axes())
    row = content["images"].index(content["example"])
    image = inspection.resized(inspection.images[[content["example"]]])
    for steps in expected.values():
        box = crop_boxes([steps["trained"][rule][[row]] for rule in ALL_RULES])
        for n, rule in enumerate(ALL_RULES):
            left = next(axes)
            assert left.get_ylabel() == rule
            assert np.allclose(left.get_images()[0].get_array(), to_array(crop(image, *box))[0], atol=1e-6)
            for name, pictures in steps.items():
                tile, shown = crop(pictures[rule][[row]], *box), next(axes)
                colors = shown.get_images()[0].get_array()
                assert_same_pictures(colors - 0.5, diverging_rgb(to_array(tile)[0], *robust_limit(tile)) - 0.5)
                value = spearman(steps["trained"][rule][row], pictures[rule][row])
                label = shown.get_xlabel().replace("\N{MINUS SIGN}", "-")
                assert label == "–" if value is None else float(label) == pytest.approx(value, abs=0.02)
                assert shown.get_title().replace("\n", " ") == (name if n == 0 else "")
            assert next(axes).get_title() == ("edges" if n == 0 else "")
        assert next(axes).get_legend()
    assert_inside(figure)


def test_curves_are_medians_and_quartiles_over_the_images(inspection, drawn, expected):
    figure, content = drawn
    assert content["stage"] == "conv4_x" and content["images"] == list(range(12))
    assert_same_numbers(content["edges"], expected["top-down"]["trained"], dict.fromkeys(ALL_RULES, edges(inspection)))
    curves = [axes for axes in figure.get_axes() if axes.get_legend()]
    for axes, (direction, steps) in zip(curves, expected.items(), strict=True):
        numbers = content["directions"][direction]
        assert numbers.keys() == steps.keys()
        for name, pictures in steps.items():
            assert_same_numbers(numbers[name], steps["trained"], pictures)
        for line in axes.get_lines():
            if (rule := line.get_label()) in ALL_RULES:
                medians = np.array([numbers[name][rule]["median"] for name in steps], float)
                np.testing.assert_allclose(line.get_ydata(), medians)


def test_each_image_by_the_channel_it_excites_most_and_fewer_large_images(inspection):
    images, channels = strongest_channels_of_images(inspection, "conv4_x")
    with torch.inference_mode():
        features = inspection.network.trace(inspection.preprocess(inspection.images[images])).features["conv4_x"]
    peaks = features.amax((2, 3))
    rounding = 1e-5 * peaks.max().item()
    assert torch.allclose(peaks[torch.arange(12), channels], peaks.amax(1), rtol=1e-4, atol=rounding)
    metadata = replace(inspection.metadata, image_size=520)
    images, channels = strongest_channels_of_images(replace(inspection, metadata=metadata), "conv4_x")
    assert torch.equal(images // 4, torch.arange(3)) and len(channels) == 3


def edges(inspection):
    return sobel_edges(inspection.resized(inspection.images))


def assert_same_numbers(numbers, trained, pictures):
    """Numbers of sanity.json are the rank correlations of these pictures, and their quartiles."""
    for rule in ALL_RULES:
        values = [spearman(*pair) for pair in zip(trained[rule], pictures[rule], strict=True)]
        found = numbers[rule]
        assert [value is None for value in found["values"]] == [value is None for value in values]
        if known := [value for value in values if value is not None]:
            assert [value for value in found["values"] if value is not None] == pytest.approx(known, abs=0.02)
            quartiles = np.quantile(known, [0.25, 0.5, 0.75]).tolist()
            assert [found[key] for key in ("low", "median", "high")] == pytest.approx(quartiles, abs=0.02)


def spearman(a, b):
    """Of the saliency of two pictures (3, H, W); None where one is constant."""
    a, b = (picture.abs().sum(0).flatten() for picture in (a, b))
    if a.min() == a.max() or b.min() == b.max():
        return None
    return np.corrcoef([ranks(values[None])[0].numpy() for values in (a, b)])[0, 1]
