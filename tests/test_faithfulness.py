"""Importance maps scored by removing blocks: against definitions and torchvision's network; figure and benchmark."""

import json
from dataclasses import replace

import faithfulness as benchmark
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import assert_inside, drawn_shapes, ends, score_under

from analysis.activations import split_dead_channels
from analysis.blocks import block_means, block_side, estimate, importance_ranks, remove_blocks
from analysis.channels import chosen_channels
from analysis.importance import METHODS
from analysis.inspection import inspect, spread
from analysis.settings import Settings
from dataset.preprocess import Preprocess
from figures import faithfulness
from network import ResNet18
from runtime.checkpoint import SHIPPED, load_network

SETTINGS = Settings(score_images=5)


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", SETTINGS, "cpu")


def test_blocks_of_8_pixels_at_224_and_smaller_ones_at_the_border():
    assert [block_side(size) for size in (224, 32, 64, 96, 7, 448)] == [8, 1, 2, 3, 1, 16]
    maps, corners = torch.rand(2, 7, 8), [(top, left) for top in (0, 3, 6) for left in (0, 3, 6)]
    expected = torch.stack([maps[:, top : top + 3, left : left + 3].mean((1, 2)) for top, left in corners], 1)
    assert np.allclose(block_means(maps, 3), expected, atol=1e-6)


def test_ranks_count_what_is_more_important_and_equals_come_in_a_fixed_order_unlike_the_blocks_own():
    values = torch.randn(3, 4, 50)
    assert torch.equal(importance_ranks(values), (values[..., None, :] > values[..., None]).sum(-1))
    values = torch.tensor([1.0] * 40 + [2.0] * 40)
    ranks = importance_ranks(values)
    assert set(ranks[40:].tolist()) == set(range(40)) and set(ranks[:40].tolist()) == set(range(40, 80))
    assert torch.equal(ranks, importance_ranks(values))
    assert abs(np.corrcoef(ranks[40:], np.arange(40))[0, 1]) < 0.5


def test_removed_blocks_have_the_mean_color_and_all_else_stays():
    preprocess = Preprocess(8, [0.2, 0.5, 0.7], [0.1, 0.2, 0.3])
    inputs = preprocess(torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8))
    mean = preprocess(255 * torch.tensor([0.2, 0.5, 0.7])[None, :, None, None].expand(1, 3, 8, 8))[0, :, 0, 0]
    removed = torch.rand(2, 9) < 0.5  # blocks of 3x3 pixels; those at the border are smaller
    changed = remove_blocks(inputs, removed, 3)
    for n, row, column in np.ndindex(2, 8, 8):
        expected = mean if removed[n, row // 3 * 3 + column // 3] else inputs[n, :, row, column]
        assert torch.allclose(changed[n, :, row, column], expected, atol=1e-6)


def test_the_interval_is_that_of_many_resamples():
    values = torch.rand(40, generator=torch.Generator().manual_seed(1)) ** 3
    mean, *interval = estimate(values).values()
    random = np.random.RandomState(5)
    expected = np.quantile([random.choice(values.numpy(), 40).mean() for _ in range(4000)], [0.025, 0.975])
    assert mean == pytest.approx(values.mean().item())
    assert interval == pytest.approx(expected.tolist(), abs=0.05 * np.ptp(expected))
    assert estimate(torch.tensor([1.0, 2.0])) == {"mean": 1.5, "low": None, "high": None}
    assert estimate(torch.full((7,), 0.3)) == pytest.approx(dict.fromkeys(("mean", "low", "high"), 0.3))


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_curves_by_definition(batch_size):
    """Of a network whose logits are known sums of pixels."""
    weights = torch.randn(2, 3 * 5 * 5, dtype=torch.float64)
    inputs = torch.randn(3, 3, 5, 5, dtype=torch.float64)
    ranks = importance_ranks(torch.rand(3, 2, 9))  # 2x2 pixels a block; 9 is no multiple of the steps
    classes = torch.tensor([0, 1, 1])

    def network(images):
        return images.flatten(1) @ weights.T

    curves = faithfulness.remaining_probability(network, inputs, classes, ranks, 2, batch_size)
    assert curves.shape == (3, 2, 2, 10)
    for n, method, order, step in np.ndindex(curves.shape):
        image, count = inputs[n].clone(), (step + 1) * 9 // 10
        blocks = sorted(range(9), key=lambda block: ranks[n, method, block], reverse=order == 1)
        for block in blocks[:count]:
            row, column = block // 3 * 2, block % 3 * 2
            image[:, row : row + 2, column : column + 2] = 0
        left, whole = network(torch.stack([image, inputs[n]])).softmax(1)[:, classes[n]]
        assert curves[n, method, order, step] == pytest.approx((left / whole).item())


def test_the_class_activation_map_with_torchvisions_network_from_the_definition(inspection):
    """Of the shipped network at a quarter of its pixels, with drawn shapes."""
    network, metadata = load_network(SHIPPED)
    metadata, preprocess = replace(metadata, image_size=112), Preprocess(112, metadata.mean, metadata.std)
    drawn, images = torch.from_numpy(drawn_shapes("test")[0][:24].copy()), torch.tensor([3, 8])
    shipped = replace(inspection, network=network, metadata=metadata, preprocess=preprocess, images=drawn)
    curves = faithfulness.class_curves(shipped, images, methods=["class activation map"])
    theirs = torchvision.models.resnet18(num_classes=10).eval()
    theirs.load_state_dict(network.state_dict())
    features = torch.nn.Sequential(*list(theirs.children())[:-2])
    with torch.inference_mode():
        inputs = shipped.resized(shipped.images[images]) - torch.tensor(metadata.mean)[:, None, None]
        inputs /= torch.tensor(metadata.std)[:, None, None]
        classes = theirs(inputs).argmax(1)
        maps = torch.einsum("nchw,nc->nhw", features(inputs), theirs.fc.weight[classes])
        maps = F.interpolate(maps[:, None], (112, 112), mode="bilinear")[:, 0]
        importance = maps.unflatten(2, (28, 4)).unflatten(1, (28, 4)).mean((2, 4)).flatten(1)
        _, _, ranks = faithfulness.block_ranks(shipped, images, methods=["class activation map"])
        for of_image, by_block in zip(ranks, importance, strict=True):
            # a valid order by their map, in which many blocks at the border are equal up to rounding
            assert by_block[of_image[0].argsort()].diff().max() < 1e-4 * by_block.abs().max()
        expected = faithfulness.remaining_probability(theirs, inputs, classes, ranks, 4)
    assert torch.allclose(curves, expected, atol=0.01)


def test_scores_by_definition():
    curves = torch.rand(6, 3, 2, 10)
    names = ["deconvnet", "random", "guided"]
    content = faithfulness.class_scores(curves, names)
    scores = [numbers["score"] for numbers in content.values()]
    assert scores == sorted(scores, reverse=True)
    for n, name in enumerate(names):
        numbers, values = content[name], (curves[:, n, 1] - curves[:, n, 0]).mean(1)
        assert numbers["most"] == pytest.approx(curves[:, n, 0].mean(0).tolist())
        assert numbers["least"] == pytest.approx(curves[:, n, 1].mean(0).tolist())
        assert [numbers[key] for key in ("score", "low", "high")] == pytest.approx(list(estimate(values).values()))
        assert list(numbers["minus"]) == ["random", "guided"]
        for rival, other in (("random", 1), ("guided", 2)):
            difference = estimate(values - (curves[:, other, 1] - curves[:, other, 0]).mean(1))
            assert numbers["minus"][rival] == pytest.approx(difference, abs=1e-7)


@pytest.mark.parametrize("searched, count", [(12, 2), (100, 5), (10_000, 8)])
def test_by_default_a_twentieth_of_the_searched_images_is_scored(inspection, searched, count):
    images = inspection.images[:1].expand(10_000, -1, -1, -1)
    assert len(faithfulness.spread_images(replace(inspection, images=images, searched=torch.arange(searched)))) == count
    assert faithfulness.spread_images(inspection, 99).tolist() == list(range(12))


def test_the_figure_shows_what_the_json_has(inspection):
    (_, figure), (_, content) = faithfulness.draw_faithfulness(inspection, SETTINGS)
    assert_inside(figure)
    assert content["images"] == spread(5, 12).tolist() and content["block"] == 1 and content["steps"] == 10
    assert content["methods"].keys() == METHODS.keys()
    for axes, (name, numbers) in zip(figure.get_axes(), content["methods"].items(), strict=False):
        assert axes.get_title("left").startswith(name)
        lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
        assert list(lines["most important first"]) == [1, *numbers["most"]]
        assert list(lines["least important first"]) == [1, *numbers["least"]]
        assert axes.get_ylim()[1] >= max(1, *numbers["most"], *numbers["least"])
    titles = [axes.get_title("left") for axes in figure.get_axes()[-2:]]
    assert [title.split(",")[0] for title in titles] == list(content["channels"]) == ["conv1", "conv5_x"]
    for stage, methods in content["channels"].items():
        channels = chosen_channels(SETTINGS, inspection.search, stage)
        alive, _ = split_dead_channels(inspection.search.top[stage], channels)
        assert [int(channel) for channel in methods["guided"]["by_channel"]] == alive


def test_scores_in_bf16_are_close_to_those_in_fp32(inspection, monkeypatch):
    """0.4 % a layer: of logits up to 1, less than 0.1. Trained logits of hundreds would have no bound."""
    network, images, methods = ResNet18(3).eval(), torch.arange(4), ["guided", "random"]
    with torch.no_grad():
        network.fc.weight /= network(inspection.inputs(inspection.images)).abs().max()
    inspection = replace(inspection, network=network)
    exact = faithfulness.class_curves(inspection, images, methods=methods)
    score_under(monkeypatch, lambda: torch.autocast("cpu", torch.bfloat16))
    assert 0 < (faithfulness.class_curves(inspection, images, methods=methods) - exact).abs().max() < 0.1


def test_the_benchmark_goes_on_after_an_interruption(small_run, tmp_path, capsys, monkeypatch):
    file, curves, computed = tmp_path / "scores.json", torch.rand(12, len(METHODS), 2, 10), []
    flags = ["--ckpt", small_run / "model.pt", "--images", 5, "--batch-size", 2, "--device", "cpu"]
    flags = list(map(str, [*flags, "--curves", tmp_path / "curves.pt", "--json", file]))

    def known_curves(inspection, images, batch_size):
        computed.append(images)
        if len(computed) == 2:
            raise KeyboardInterrupt
        return curves[images]

    monkeypatch.setattr(benchmark, "class_curves", known_curves)
    with pytest.raises(SystemExit):
        benchmark.main(flags)
    benchmark.main(flags)
    chosen = spread(5, 12)
    assert all(map(torch.equal, computed, (chosen[:2], chosen[2:4], chosen[2:4], chosen[4:])))
    content, printed = json.loads(file.read_text()), capsys.readouterr().out
    assert content == {"images": 5, "scores": faithfulness.class_scores(curves[chosen])}
    for name, numbers in content["scores"].items():
        estimates = [numbers | {"mean": numbers["score"]}, *numbers["minus"].values()]
        cells = [f"{found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f})" for found in estimates]
        assert f"| {name} | {' | '.join(cells)} |" in printed
    ends(capsys, benchmark.main, [*flags, "--images", 6], 1, "curves.pt")
    assert len(computed) == 4


def test_blocks_lie_on_the_object_or_beside_it(inspection):
    masks = torch.zeros(3, 32, 32, dtype=torch.bool)
    masks[:, 5:20, 3:11] = True
    images = torch.tensor([0, 5, 9])
    (on, size), (beside, rest) = (benchmark.shares_on_object(inspection, images, part) for part in (masks, ~masks))
    assert size == pytest.approx(15 * 8 / 32**2) and rest == pytest.approx(1 - size)
    for name in METHODS:
        assert on[name] + beside[name] == pytest.approx(1) and 0 <= on[name] <= 1
