"""Random weights, rank correlation and Sobel edges, against their definitions; the figure and its numbers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_inside, assert_same_pictures
from matplotlib.figure import Figure

from analysis.channels import robust_limit
from analysis.crops import correlations, crop, crop_boxes
from analysis.importance import sobel_edges
from analysis.inspection import inspect
from analysis.reconstruction import ALL_RULES
from analysis.settings import Settings
from figures.comparison import select_units
from figures.image_grid import diverging_rgb, to_array
from figures.sanity import DIRECTIONS, MODULES, draw_sanity, randomized_networks, ranks, strongest_channels_of_images
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


def test_correlation_by_definition():
    a, b = torch.randn(2, 4, 5, 8)
    b[3] = 0.1  # constant, though its sum is rounded
    expected = [np.corrcoef(x.flatten(), y.flatten())[0, 1] for x, y in zip(a[:3].numpy(), b[:3].numpy(), strict=True)]
    assert correlations(a, b)[:3] == pytest.approx(expected, abs=1e-6)
    assert correlations(a, b)[3] is None and correlations(b, a)[3] is None


def test_edges_are_where_grey_changes():
    images = torch.zeros(1, 3, 8, 10)
    images[..., 5:] = 1
    edges = sobel_edges(images)
    assert edges.shape == images.shape and torch.equal(edges[0, 0], edges[0, 2])
    assert set(edges[0, 0].amax(0).nonzero().flatten().tolist()) == {4, 5}
    assert torch.allclose(edges[0, 0, :, 4], torch.ones(8))  # a step of 1
    assert not sobel_edges(torch.full((1, 3, 8, 8), 0.7)).abs().gt(1e-6).any()


@pytest.mark.parametrize(
    "direction, names",
    [
        ("top-down", ["conv4_x random", "+ conv3_x", "+ conv2_x", "+ conv1"]),
        ("bottom-up", ["conv1 random", "+ conv2_x", "+ conv3_x", "+ conv4_x"]),
    ],
)
def test_weights_become_random_stage_by_stage(direction, names):
    torch.manual_seed(1)
    network = ResNet18(4).eval()
    for value in network.parameters():
        torch.nn.init.normal_(value)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    stages = [name.removeprefix("+ ").removesuffix(" random") for name in names]
    for count, (name, random) in enumerate(randomized_networks(network, "conv4_x", direction), 1):
        assert name == names[count - 1] and not random.training
        after = random.state_dict()
        changed = {key.split(".")[0] for key in after if not torch.equal(after[key], before[key])}
        assert changed == {part for stage in stages[:count] for part in MODULES[stage]}
    assert count == 4
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_the_random_weights_are_always_the_same():
    torch.manual_seed(3)
    network = ResNet18(4).eval()
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        *_, (_, random) = randomized_networks(network, "conv1")
        weights.append(random.conv1.weight)
    assert torch.equal(*weights) and not torch.equal(weights[0], network.conv1.weight)


def test_stages_are_those_of_the_network():
    assert MODULES.keys() == set(STAGES)
    names = {name for parts in MODULES.values() for name in parts}
    assert names == {name for name, module in ResNet18().named_children() if list(module.parameters())} - {"fc"}


SETTINGS = Settings(stages=("conv4_x",))


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", SETTINGS, "cpu")


@pytest.fixture(scope="module")
def drawn(inspection):
    (_, figure), (_, content) = draw_sanity(inspection, SETTINGS)
    assert isinstance(figure, Figure)
    return figure, content


@pytest.fixture(scope="module")
def expected(inspection, drawn):
    """direction -> step -> rule -> whole pictures: of the example, then of the images of the curves."""
    _, content = drawn
    units = select_units(inspection, SETTINGS)
    images = inspection.images[[units.images[0].item(), *content["images"]]]
    channels = [units.channels[0], *content["channels"]]

    def pictures(network):
        with torch.inference_mode():
            trace = network.trace(inspection.preprocess(images), "conv4_x")
            signal = isolate(trace.features["conv4_x"], channels)
            return {rule: ReverseResNet18(network, rule)(signal, "conv4_x", trace) for rule in ALL_RULES}

    trained = pictures(inspection.network)
    return {
        direction: {"trained": trained}
        | {name: pictures(network) for name, network in randomized_networks(inspection.network, "conv4_x", direction)}
        for direction in DIRECTIONS
    }


class TestFigure:
    def test_every_network_under_every_rule(self, inspection, drawn, expected):
        """Own scale per tile; all cropped like the trained network's."""
        figure, content = drawn
        axes = iter(figure.get_axes())
        image = inspection.resized(inspection.images[select_units(inspection, SETTINGS).images[:1]])
        for steps in expected.values():
            box = crop_boxes([steps["trained"][rule][:1] for rule in ALL_RULES])
            for n, rule in enumerate(ALL_RULES):
                left = next(axes)
                assert left.get_ylabel() == rule and len(left.get_images()) == (n == 0)
                if n == 0:
                    assert np.allclose(left.get_images()[0].get_array(), to_array(crop(image, *box))[0], atol=1e-6)
                for pictures in steps.values():
                    tile, shown = crop(pictures[rule][:1], *box), next(axes)
                    (limit,) = robust_limit(tile)
                    colors = shown.get_images()[0].get_array()
                    assert_same_pictures(colors - 0.5, diverging_rgb(to_array(tile)[0], limit) - 0.5)
                    value = spearman(steps["trained"][rule][0], pictures[rule][0])
                    label = shown.get_xlabel()
                    assert label == "–" if value is None else float(label) == pytest.approx(value, abs=0.02)
                assert next(axes).get_title() == ("edges" if n == 0 else "")
            assert next(axes).get_legend()

    def test_curves_are_medians_and_quartiles_over_the_images(self, drawn, expected):
        figure, content = drawn
        assert content["stage"] == "conv4_x" and content["images"] == list(range(12))
        curves = [axes for axes in figure.get_axes() if axes.get_legend()]
        for axes, (direction, steps) in zip(curves, expected.items(), strict=True):
            lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
            assert content["directions"][direction].keys() == steps.keys()
            for column, (name, pictures) in enumerate(steps.items()):
                for rule in ALL_RULES:
                    entry = content["directions"][direction][name][rule]
                    values = [spearman(steps["trained"][rule][n], pictures[rule][n]) for n in range(1, 13)]
                    assert [value is None for value in entry["values"]] == [value is None for value in values]
                    if known := [value for value in values if value is not None]:
                        numbers = [entry["low"], entry["median"], entry["high"]]
                        assert numbers == pytest.approx(np.quantile(known, [0.25, 0.5, 0.75]).tolist(), abs=0.02)
                        assert lines[rule][column] == pytest.approx(entry["median"])

    def test_the_edges_are_compared_with_the_trained_pictures(self, inspection, drawn, expected):
        _, content = drawn
        edges = sobel_edges(inspection.resized(inspection.images[content["images"]]))
        trained = expected["top-down"]["trained"]
        for rule in ALL_RULES:
            values = [spearman(picture, edge) for picture, edge in zip(trained[rule][1:], edges, strict=True)]
            known = [n for n, value in enumerate(values) if value is not None]
            found = content["edges"][rule]["values"]
            assert [found[n] for n in known] == pytest.approx([values[n] for n in known], abs=0.02)

    def test_no_text_leaves_the_figure(self, drawn):
        assert_inside(drawn[0])

    def test_each_image_by_the_channel_it_excites_most(self, inspection):
        images, channels = strongest_channels_of_images(inspection, "conv4_x")
        with torch.inference_mode():
            features = inspection.network.trace(inspection.preprocess(inspection.images[images])).features["conv4_x"]
        peaks = features.amax((2, 3))
        rounding = 1e-5 * peaks.max().item()
        assert torch.allclose(peaks[torch.arange(12), channels], peaks.amax(1), rtol=1e-4, atol=rounding)

    def test_large_images_are_fewer(self, inspection):
        metadata = replace(inspection.metadata, image_size=520)
        images, channels = strongest_channels_of_images(replace(inspection, metadata=metadata), "conv4_x")
        assert torch.equal(images // 4, torch.arange(3)) and len(channels) == 3


def spearman(a, b):
    """Of the saliency of two pictures (3, H, W); None where one is constant."""
    a, b = (picture.abs().sum(0).flatten() for picture in (a, b))
    if a.min() == a.max() or b.min() == b.max():
        return None
    return np.corrcoef([ranks(values[None])[0].numpy() for values in (a, b)])[0, 1]
