"""Mirrors with one mistake each, against autograd; their numbers and their figure, against definitions."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_inside, assert_same_pictures

from analysis.channels import robust_limit
from analysis.crops import crop, crop_boxes
from analysis.inspection import inspect
from analysis.settings import Settings
from figures.comparison import select_units
from figures.image_grid import diverging_rgb, to_array
from figures.mirrors import MISTAKES, UNITS_SHOWN, deviation, draw_mirrors, median, mirrors_by_mistake
from figures.style import format_short, format_two_digits
from network import STAGES
from reverse_network import RULES, ReverseResNet18, isolate

SETTINGS = Settings()


def random_images():
    return torch.randn(2, 3, 71, 53, dtype=torch.float64)


def by_mistake(network, rule, stage, signal, trace):
    with torch.inference_mode():
        return {name: mirror(signal, stage, trace) for name, mirror in mirrors_by_mistake(network, rule).items()}


def test_each_mistake_is_far_from_autograd_and_the_exact_mirror_is_not(random_network):
    images = random_images().requires_grad_()
    trace = random_network.trace(images)
    features = trace.features["conv5_x"]
    signal = isolate(features, features.amax((2, 3)).argmax(1), "peak").detach().sign()  # small beside the shifts
    (expected,) = torch.autograd.grad((features * signal).sum(), images)
    pictures = by_mistake(random_network, "gradient", "conv5_x", signal, trace)
    errors = {name: ((each - expected).norm() / expected.norm()).item() for name, each in pictures.items()}
    assert errors.pop("exact") < 1e-12
    assert errors.keys() == MISTAKES.keys() and len(errors) == 7
    assert all(0.01 < error < float("inf") for error in errors.values()), errors


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("stage", STAGES[:3])
def test_a_mistake_matters_only_where_its_layers_are(random_network, stage, rule):
    """conv1 has neither blocks nor pooling below it, and conv2_x no stride in its blocks."""
    trace = random_network.trace(random_images(), stage)
    features = trace.features[stage]
    pictures = by_mistake(random_network, rule, stage, isolate(features, features.amax((2, 3)).argmax(1)), trace)
    same = {name for name, each in pictures.items() if torch.allclose(each, pictures["exact"], rtol=1e-9, atol=0)}
    at_conv1 = {"branches summed twice", "shortcut dropped", "unpooling overwrites"}
    stride = {"stride on the wrong convolution"}
    expected = {"conv1": {"exact"} | at_conv1 | stride, "conv2_x": {"exact"} | stride, "conv3_x": {"exact"}}
    assert same == expected[stage]


def test_only_shifts_and_biases_draw_a_picture_of_nothing(random_network):
    trace = random_network.trace(random_images())
    nothing = torch.zeros_like(trace.features["conv5_x"])
    pictures = by_mistake(random_network, "deconvnet", "conv5_x", nothing, trace)
    assert {name for name, each in pictures.items() if each.any()} == {"batch norm forwards", "bias added"}


def test_the_network_and_the_random_numbers_stay_as_they_are(random_network):
    before = {name: value.clone() for name, value in random_network.state_dict().items()}
    strides = {name: each.stride for name, each in random_network.named_modules() if hasattr(each, "stride")}
    fresh = torch.nn.ConvTranspose2d(64, 64, 3).bias  # 64 values each
    state = torch.random.get_rng_state()
    first, second = (mirrors_by_mistake(random_network, "guided")["bias added"] for _ in range(2))
    for a, b in zip((first, *first.blocks), (second, *second.blocks), strict=True):
        assert torch.equal(a.conv1.bias, b.conv1.bias) and a.conv1.bias.all()
    assert first.blocks[0].conv1.bias.std() == pytest.approx(fresh.std().item(), rel=0.4)
    assert torch.equal(torch.random.get_rng_state(), state)
    after = random_network.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], value) for name, value in after.items())
    assert strides == {name: each.stride for name, each in random_network.named_modules() if hasattr(each, "stride")}


def test_deviation_by_definition():
    exact = torch.rand(4, 3, 5, 6)
    exact[3] = 0
    other = torch.rand(4, 3, 5, 6) * 1e25  # its squares are beyond single precision
    other[2] = 0.1  # constant, though its sum is rounded
    found = deviation(other, exact)
    a, b = exact.double().flatten(1).numpy(), other.double().flatten(1).numpy()
    errors = np.linalg.norm(b - a, axis=1)[:3] / np.linalg.norm(a, axis=1)[:3]
    assert found["error"][:3] == pytest.approx(errors) and found["error"][3] is None
    assert found["correlation"][:2] == pytest.approx([np.corrcoef(a[n], b[n])[0, 1] for n in range(2)])
    assert found["correlation"][2:] == [None, None]
    assert median([3.0, None, 1.0, 5.0]) == 3 and median([None]) is None


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", SETTINGS, "cpu", stages=("conv1", "conv2_x", "conv5_x"))


def test_tiles_and_numbers_are_the_mirrors_of_the_strongest_units(inspection):
    (_, figure), (_, content) = draw_mirrors(inspection, SETTINGS)
    assert_inside(figure)
    units = select_units(inspection, SETTINGS)
    rows = len(units.channels[:UNITS_SHOWN])
    shown_units = [(unit["channel"], unit["image"]) for unit in content["units"][-rows:]]
    assert shown_units == list(zip(units.channels, units.images.tolist(), strict=True))[:rows]
    with torch.inference_mode():
        trace = inspection.network.trace(inspection.preprocess(inspection.images[units.images[:rows]]))
        signal = isolate(trace.features["conv5_x"], units.channels[:rows], units.positions[:rows])
        exact = ReverseResNet18(inspection.network, "guided")(signal, "conv5_x", trace)
        dropped = ReverseResNet18(inspection.network, "guided", branches="residual")(signal, "conv5_x", trace)
    across, dropped_column = 2 + len(MISTAKES), 2 + list(MISTAKES).index("shortcut dropped")
    axes = np.reshape(figure.get_axes(), (rows + 1, across))
    box = crop_boxes([exact])  # every column is cropped alike
    for column, pictures in ((1, exact), (dropped_column, dropped)):
        tiles = crop(pictures, *box)
        for row, (tile, limit) in enumerate(zip(to_array(tiles), robust_limit(tiles), strict=True)):
            shown = axes[row, column].get_images()[0].get_array()
            assert_same_pictures(shown - 0.5, diverging_rgb(tile, limit) - 0.5)
    errors = (dropped - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    for row, (unit, expected) in enumerate(zip(content["units"][-rows:], errors.tolist(), strict=True)):
        error, correlation = (unit[key]["shortcut dropped"] for key in ("error", "correlation"))
        assert error == pytest.approx(expected, rel=0.02)
        label = f"error {format_short(error)}\ncorr. {format_two_digits(correlation)}"
        assert axes[row, dropped_column].get_xlabel() == label
    table = [cell.texts[0].get_text().split("\n") for cell in axes[rows, 1:]]
    assert table[0] == ["conv1", "conv2_x", "conv5_x"]
    for lines, mistake in zip(table[1:], content["mistakes"].values(), strict=True):
        numbers = mistake["stages"].values()
        assert lines == [f"{format_short(n['error'])} / {format_two_digits(n['correlation'])}" for n in numbers]
    texts = {" ".join(text.get_text().split()) for text in figure.subfigs[1].texts}
    assert texts == {*MISTAKES, *(f"{wrong} {visible}" for wrong, visible, _ in MISTAKES.values())}
    for (name, mistake), key in itertools.product(content["mistakes"].items(), ("error", "correlation")):
        assert mistake["stages"].keys() == {"conv1", "conv2_x", "conv5_x"}
        for stage, numbers in mistake["stages"].items():
            values = [unit[key][name] for unit in content["units"] if unit["stage"] == stage]
            assert 1 <= len(values) <= UNITS_SHOWN
            known = [value for value in values if value is not None]
            assert numbers[key] == (pytest.approx(np.median(known)) if known else None)


def test_the_rule_follows_the_settings(inspection):
    only = replace(SETTINGS, stages=("conv2_x",), rules=("gradient",), channels=(3, 5, 9))
    (_, figure), (_, content) = draw_mirrors(inspection, only)
    assert content["rule"] == "gradient" and "conv2_x" in figure.get_suptitle()
    channels = {unit["channel"] for unit in content["units"] if unit["stage"] == "conv2_x"}
    assert channels and channels <= {3, 5, 9}
