"""Importance maps scored by removing blocks: against definitions, torchvision's network and autograd; the figure."""

import json
from dataclasses import replace

import faithfulness as benchmark
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import assert_inside, drawn_shapes, ends, score_under
from matplotlib.figure import Figure

from analysis.activations import split_dead_channels
from analysis.blocks import estimate, importance_ranks
from analysis.channels import chosen_channels
from analysis.importance import METHODS, ImportanceBatch, random_maps
from analysis.inspection import inspect, spread
from analysis.relevance import pixel_box
from analysis.settings import Settings
from dataset.preprocess import Preprocess
from figures.faithfulness import (
    STEPS,
    block_ranks,
    class_curves,
    class_scores,
    draw_faithfulness,
    remaining_probability,
    spread_images,
)
from network import ResNet18
from runtime.checkpoint import SHIPPED, load_network

BOX = pixel_box([0.5] * 3, [0.1] * 3)


class TestCurves:
    """Of a network whose logits are known sums of pixels."""

    WEIGHTS = torch.randn(2, 3 * 5 * 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def network(self, inputs):
        return inputs.flatten(1) @ self.WEIGHTS.T

    @pytest.mark.parametrize("batch_size", [1, 7, 1000])
    def test_by_definition(self, batch_size):
        inputs = torch.randn(3, 3, 5, 5, dtype=torch.float64)
        ranks = importance_ranks(torch.rand(3, 2, 9))  # 2x2 pixels a block; 9 is no multiple of the steps
        classes = torch.tensor([0, 1, 1])
        found = remaining_probability(self.network, inputs, classes, ranks, 2, batch_size)
        assert found.shape == (3, 2, 2, STEPS)
        for n, method, order, step in np.ndindex(found.shape):
            image, count = inputs[n].clone(), (step + 1) * 9 // 10
            blocks = sorted(range(9), key=lambda block: ranks[n, method, block], reverse=order == 1)
            for block in blocks[:count]:
                row, column = block // 3 * 2, block % 3 * 2
                image[:, row : row + 2, column : column + 2] = 0
            expected, whole = (self.network(each[None]).softmax(1)[0, classes[n]] for each in (image, inputs[n]))
            assert found[n, method, order, step] == pytest.approx((expected / whole).item())


def test_maps_against_autograd(random_network):
    images = torch.randn(2, 3, 71, 53, dtype=torch.float64).requires_grad_()
    logits = random_network(images)
    for classes, expected_classes in ((None, logits.argmax(1)), (torch.tensor([4, 0]),) * 2):
        (gradient,) = torch.autograd.grad(logits[[0, 1], expected_classes].sum(), images, retain_graph=True)
        with torch.inference_mode():
            batch = ImportanceBatch(random_network, images, images, torch.tensor([0, 1]), BOX, classes=classes)
            assert torch.equal(batch.classes, expected_classes)
            for name, expected in (
                ("gradient", gradient.abs().sum(1)),
                ("gradient x input", (gradient * images).sum(1)),
            ):
                assert (batch.map(name) - expected).norm() < 1e-10 * expected.norm()


def test_the_class_activation_map_with_torchvisions_network_from_the_definition(inspection):
    """Of the shipped network at a quarter of its pixels, with drawn shapes."""
    network, metadata = load_network(SHIPPED)
    metadata = replace(metadata, image_size=112)
    shipped = replace(
        inspection,
        network=network,
        metadata=metadata,
        preprocess=Preprocess(112, metadata.mean, metadata.std),
        images=torch.from_numpy(drawn_shapes("test")[0][:24].copy()),
    )
    images = torch.tensor([3, 8])
    curves = class_curves(shipped, images, methods=["class activation map"])
    theirs = torchvision.models.resnet18(num_classes=10).eval()
    theirs.load_state_dict(shipped.network.state_dict())
    features = torch.nn.Sequential(*list(theirs.children())[:-2])
    with torch.inference_mode():
        inputs = shipped.resized(shipped.images[images]) - torch.tensor(shipped.metadata.mean)[:, None, None]
        inputs /= torch.tensor(shipped.metadata.std)[:, None, None]
        probability, classes = theirs(inputs).softmax(1).max(1)
        maps = torch.einsum("nchw,nc->nhw", features(inputs), theirs.fc.weight[classes])
        maps = F.interpolate(maps[:, None], (112, 112), mode="bilinear")[:, 0]
        importance = maps.unflatten(2, (28, 4)).unflatten(1, (28, 4)).mean((2, 4)).flatten(1)
        _, _, ranks = block_ranks(shipped, images, methods=["class activation map"])
        for n in range(2):
            # a valid order by their map, in which many blocks at the border are equal up to rounding
            order = ranks[n, 0].argsort()
            assert importance[n][order].diff().max() < 1e-4 * importance[n].abs().max()
            for blocks, curve in zip((order, order.flip(0)), curves[n, 0], strict=True):
                changed = []
                for step in range(1, 11):
                    image = inputs[n].clone()
                    for block in blocks[: step * 784 // 10].tolist():
                        row, column = block // 28 * 4, block % 28 * 4
                        image[:, row : row + 4, column : column + 4] = 0
                    changed.append(image)
                expected = theirs(torch.stack(changed)).softmax(1)[:, classes[n]] / probability[n]
                assert curve.tolist() == pytest.approx(expected.tolist(), abs=0.01)


def test_noise_depends_on_the_seed_alone():
    alone, together = random_maps(torch.tensor([7]), (5, 6)), random_maps(torch.tensor([3, 7]), (5, 6))
    assert torch.equal(alone[0], together[1]) and not torch.equal(*together)


def test_scores_by_definition():
    curves = torch.rand(6, 3, 2, STEPS)
    names = ["deconvnet", "random", "guided"]
    content = class_scores(curves, names)
    scores = [numbers["score"] for numbers in content.values()]
    assert scores == sorted(scores, reverse=True)
    for n, name in enumerate(names):
        numbers, values = content[name], (curves[:, n, 1] - curves[:, n, 0]).mean(1)
        assert numbers["most"] == pytest.approx(curves[:, n, 0].mean(0).tolist())
        assert numbers["least"] == pytest.approx(curves[:, n, 1].mean(0).tolist())
        assert (numbers["score"], numbers["low"], numbers["high"]) == pytest.approx(estimate(values))
        assert list(numbers["minus"]) == ["random", "guided"]
        for rival, other in (("random", 1), ("guided", 2)):
            difference = estimate(values - (curves[:, other, 1] - curves[:, other, 0]).mean(1))
            assert numbers["minus"][rival] == pytest.approx(difference._asdict(), abs=1e-7)


SETTINGS = Settings(score_images=5)


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", SETTINGS, "cpu")


@pytest.fixture(scope="module")
def drawn(inspection):
    (_, figure), (_, content) = draw_faithfulness(inspection, SETTINGS)
    assert isinstance(figure, Figure)
    return figure, content


class TestFigure:
    def test_images_are_spread_over_the_test_split(self, inspection):
        assert spread_images(inspection, 99).tolist() == list(range(12))

    @pytest.mark.parametrize("searched, count", [(12, 2), (100, 5), (10_000, 8)])
    def test_by_default_a_twentieth_of_the_searched_images(self, inspection, searched, count):
        images = inspection.images[:1].expand(10_000, -1, -1, -1)
        assert len(spread_images(replace(inspection, images=images, searched=torch.arange(searched)))) == count

    def test_the_json_has_every_method_and_the_images(self, drawn):
        _, content = drawn
        assert content["images"] == spread(5, 12).tolist() and content["block"] == 1 and content["steps"] == STEPS == 10
        assert content["methods"].keys() == METHODS.keys()

    def test_panels_show_the_curves_with_the_highest_score_first(self, drawn):
        figure, content = drawn
        scores = [numbers["score"] for numbers in content["methods"].values()]
        assert scores == sorted(scores, reverse=True)
        for axes, (name, numbers) in zip(figure.get_axes(), content["methods"].items(), strict=False):
            assert axes.get_title("left").startswith(name)
            lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
            assert list(lines["most important first"]) == [1, *numbers["most"]]
            assert list(lines["least important first"]) == [1, *numbers["least"]]

    def test_a_panel_per_searched_stage(self, inspection, drawn):
        figure, content = drawn
        titles = [axes.get_title("left") for axes in figure.get_axes()[-2:]]
        assert [title.split(",")[0] for title in titles] == list(content["channels"]) == ["conv1", "conv5_x"]
        for stage, methods in content["channels"].items():
            channels = chosen_channels(SETTINGS, inspection.search, stage)
            alive, _ = split_dead_channels(inspection.search.top[stage], channels)
            assert [int(channel) for channel in methods["guided"]["by_channel"]] == alive

    def test_no_text_leaves_the_figure(self, drawn):
        assert_inside(drawn[0])


def test_scores_in_bf16_are_close_to_those_in_fp32(inspection, monkeypatch):
    """bf16 rounds to 8 bits, 0.4 % a layer: of logits up to 1, less than 0.1; a wrong cast costs far more.

    The network is not trained: rounding of the logits of hundreds that a toy network may learn would have no bound.
    """
    network, images = ResNet18(3).eval(), torch.arange(4)
    with torch.no_grad():
        largest = network(inspection.inputs(inspection.images)).abs().max()
        network.fc.weight /= largest
        network.fc.bias /= largest
    inspection = replace(inspection, network=network)
    exact = class_curves(inspection, images)
    score_under(monkeypatch, lambda: torch.autocast("cpu", torch.bfloat16))
    assert 0 < (class_curves(inspection, images) - exact).abs().max() < 0.1


class TestBenchmark:
    def test_its_numbers_are_those_of_the_figure_also_after_an_interruption(
        self, small_run, inspection, tmp_path, capsys, monkeypatch
    ):
        file, curves, computed = tmp_path / "scores.json", class_curves(inspection, spread(3, 12), batch_size=1), []
        flags = ["--ckpt", small_run / "model.pt", "--images", 3, "--batch-size", 1, "--device", "cpu"]
        flags = list(map(str, [*flags, "--curves", tmp_path / "curves.pt", "--json", file]))

        def until_the_third(inspection, images, batch_size):
            if len(computed) == 2:
                raise KeyboardInterrupt
            computed.append(images)
            return class_curves(inspection, images, batch_size=batch_size)

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(benchmark, "class_curves", until_the_third)
            benchmark.main(flags)
        patch.setattr(
            benchmark, "class_curves", lambda *args, **how: computed.append(args[1]) or class_curves(*args, **how)
        )
        benchmark.main(flags)
        assert torch.cat(computed).tolist() == spread(3, 12).tolist()
        expected = class_scores(curves)
        content, printed = json.loads(file.read_text()), capsys.readouterr().out
        assert content["images"] == 3 and "coverage" not in content
        for name, found in content["scores"].items():
            assert found["score"] == pytest.approx(expected[name]["score"], abs=1e-4)
            assert f"| {name} | {found['score']:.3f} (" in printed
            assert f"| {found['minus']['guided']['mean']:.3f} (" in printed
        ends(capsys, benchmark.main, [*flags, "--images", 4], 1, "curves.pt")

    def test_intervals_cover_the_mean_about_as_often_as_they_should(self, monkeypatch):
        monkeypatch.setattr("analysis.blocks.RESAMPLES", 400)
        scores = torch.rand(400, generator=torch.Generator().manual_seed(0)) ** 2
        assert 85 <= benchmark.coverage(scores) <= 100

    def test_blocks_lie_on_the_object_or_beside_it(self, inspection):
        masks = torch.zeros(3, 32, 32, dtype=torch.bool)
        masks[:, 5:20, 3:11] = True
        images = torch.tensor([0, 5, 9])
        (on, size), (beside, rest) = (benchmark.shares_on_object(inspection, images, each) for each in (masks, ~masks))
        assert size == pytest.approx(15 * 8 / 32**2) and rest == pytest.approx(1 - size)
        for name in METHODS:
            assert on[name] + beside[name] == pytest.approx(1) and 0 <= on[name] <= 1
