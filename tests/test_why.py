"""Why one class and not another: sums against torchvision's network, signals by hand, the figure, and its flags."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from conftest import ends, visualize
from matplotlib.colors import to_rgb
from torch.overrides import TorchFunctionMode

import visualizer
from analysis.inspection import inspect
from analysis.settings import Settings
from figures import FIGURES
from figures.comparison import AGAINST, FOR, evidence_over_image
from figures.image_grid import to_array
from figures.registry import NotDrawn
from figures.why import class_numbers, close_decision, mask_examples, split_decision
from reverse_network import class_signal

SETTINGS = Settings()
GROUPS = {2: [1, 2], 0: [0, 3]}


def ten_groups():
    """Peaks (12, 512): an image excites the channels of one group alone; the first five groups have one channel."""
    image = torch.arange(512)
    image[5:] = 5 + image[5:] % 5
    return torch.nn.functional.one_hot(image, 12).T * torch.linspace(1, 2, 512)


@pytest.fixture(scope="module")
def inspection(small_run):
    """The small run's, with known groups of channels, and labels that make every prediction a mistake."""
    found = inspect(small_run / "model.pt", SETTINGS, "cpu")
    search = replace(found.search, peaks={"conv5_x": ten_groups()})
    return replace(found, search=search, labels=(found.search.logits.argmax(1) + 1) % 3)


def most_exciting(inspection, channels):
    """The four images with the highest mean peak in these channels."""
    means = inspection.search.peaks["conv5_x"][:, list(channels)].double().mean(1)
    return means.argsort(descending=True, stable=True)[:4]


def draw(inspection, settings=SETTINGS):
    *figures, (path, entries) = FIGURES["why"].draw(inspection, settings)
    assert str(path) == "why"
    return {str(path): figure for path, figure in figures}, entries


@pytest.fixture(scope="module")
def drawn(inspection):
    """The figures by name, and the content of why.json."""
    return draw(inspection)


@pytest.fixture
def small_network():
    """Four channels, three classes; the weights are whole numbers."""
    network = SimpleNamespace(fc=torch.nn.Linear(4, 3))
    network.fc.weight.data = torch.tensor([[1.0, 2, 3, 4], [0, 1, 5, 1], [-9, -9, -9, -9]])
    network.fc.bias.data = torch.tensor([0.5, 2, 0])
    features = torch.tensor([1.0, 0, 2, 3])[None, :, None, None] * torch.tensor([[0.0, 1], [2, 1]])  # means 1, 0, 2, 3
    return network, features


def test_contributions_by_hand(small_network):
    # logits: 1 + 0 + 6 + 12 + 0.5 = 19.5 and 0 + 0 + 10 + 3 + 2 = 15; channels add 1, 0, -4, 9 to their difference
    decision = split_decision(*small_network, GROUPS)
    assert decision["classes"] == [0, 1] and decision["logits"] == [19.5, 15.0] and decision["bias"] == -1.5
    first = {"representative": 0, "channels": [0, 3], "contribution": 10.0, "map": [[0, 2.5], [5, 2.5]]}
    second = {"representative": 2, "channels": [1, 2], "contribution": -4.0, "map": [[0, -1], [-2, -1]]}
    assert decision["groups"] == [first, second]
    assert decision["probabilities"] == pytest.approx((1 / (1 + np.exp(-4.5)), 1 / (1 + np.exp(4.5))))
    reverse = split_decision(*small_network, GROUPS, (1, 0))
    assert reverse["logits"] == [15.0, 19.5]
    assert [group["contribution"] for group in reverse["groups"]] == [-10.0, 4.0]


def test_maps_are_the_weighted_class_signals_and_sum_to_the_bars(random_network):
    """In float64, of an image that is not square."""
    with torch.no_grad():
        features = random_network.trace(torch.randn(1, 3, 70, 130, dtype=torch.float64)).features["conv5_x"]
        first, second = (class_signal(random_network, features, number, weighted=True)[0] for number in (7, 2))
    groups = {start: list(range(start, 512, 3)) for start in (1, 0, 2)}
    decision = split_decision(random_network, features, groups, (7, 2))
    assert features.shape[2:] == (3, 5)
    for group in decision["groups"]:
        expected = (first - second)[group["channels"]].sum(0)
        found = torch.tensor(group["map"], dtype=torch.float64)
        assert expected.norm() > 0 and (found - expected).norm() < 1e-12 * expected.norm()
        assert found.sum().item() == pytest.approx(group["contribution"], abs=1e-12 * found.abs().sum().item())
    total = sum(group["contribution"] for group in decision["groups"]) + decision["bias"]
    assert total == pytest.approx(decision["logits"][0] - decision["logits"][1], rel=1e-10)


class OnMps(TorchFunctionMode):
    """Float64 exists on the host alone: what has not been brought there raises, as on MPS."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        if function is torch.Tensor.cpu:
            result.is_on_host = True
        if function in (torch.Tensor.double, torch.Tensor.to) and result.dtype == torch.float64:
            assert hasattr(args[0], "is_on_host"), "MPS has no float64"
        return result


def test_a_decision_needs_no_float64_on_the_device(small_network):
    with OnMps():
        split_decision(*small_network, GROUPS)


def test_groups_and_bias_are_torchvisions_difference(inspection, drawn):
    _, entries = drawn
    network = torchvision.models.resnet18(num_classes=3)
    network.load_state_dict(inspection.network.state_dict())
    network = network.eval().to(memory_format=torch.channels_last)
    assert len(entries) == 2
    for entry in entries:
        with torch.no_grad():
            logits = network(inspection.inputs(inspection.images[entry["image"]][None]))[0].double()
        a, b = (inspection.metadata.classes.index(name) for name in entry["classes"])
        total = sum(group["contribution"] for group in entry["groups"]) + entry["bias"]
        scale = max(1, logits.abs().max().item())
        assert abs(total - (logits[a] - logits[b]).item()) < 1e-5 * scale
        assert entry["logits"] == pytest.approx([logits[a].item(), logits[b].item()], abs=1e-5 * scale)
        channels = [channel for group in entry["groups"] for channel in group["channels"]]
        assert len(entry["groups"]) == 10 and sorted(channels) == list(range(512))
    assert entries[0]["logits"][0] >= entries[0]["logits"][1]


def test_the_mistake_is_the_most_confident_one(inspection, drawn):
    confidence, predicted = inspection.search.logits.softmax(1).max(1)
    figures, (_, entry) = drawn
    assert confidence[entry["image"]] == confidence.max()
    names, number = inspection.metadata.classes, predicted[entry["image"]].item()
    assert entry["classes"] == [names[number], names[(number + 1) % 3]]
    assert figures["why_mistake"].get_suptitle().endswith("the true class)?")
    assert "of 12 mistakes in 12 test images, the most confident one" == entry["chosen"]


def test_by_default_a_decision_that_is_close(inspection):
    logits = torch.tensor([[0.9, 0.09, 0.01], [0.35, 0.65, 0], [0.28, 0.02, 0.7], [0.7, 0.3, 0]]).log()
    crafted = replace(inspection, search=replace(inspection.search, logits=logits), searched=torch.tensor([1, 3, 5, 7]))
    labels = torch.zeros(12).long()
    labels[[3, 5, 7]] = torch.tensor([1, 2, 1])  # the last one is misclassified
    crafted = replace(crafted, labels=labels)
    for classes, image, words in (
        (None, 5, "of 3 test images correctly classified, that with probabilities nearest to 70 and 30 %"),
        ((0, 1), 3, "of 2 test images correctly classified as one of the two"),
        ((2, 1), 5, "of 2 test images correctly classified as one of the two"),
    ):
        picture, chosen = close_decision(crafted, classes)
        assert picture.origin == image and chosen.startswith(words)
    picture, chosen = close_decision(replace(crafted, labels=torch.where(torch.arange(12) == 5, 0, 2)))
    assert picture.origin == 7 and chosen.startswith("of 4 test images searched")
    picture, chosen = close_decision(replace(crafted, label_names=("disk", "ring", "cross")))
    assert picture.origin == 7 and chosen.startswith("of 4 test images searched")


@pytest.mark.parametrize("number, name", [(0, "why"), (1, "why_mistake")])
def test_the_figure_shows_the_largest_groups(inspection, drawn, number, name):
    figure, entry = drawn[0][name], drawn[1][number]
    shown = sorted(entry["groups"][:8], key=lambda group: -group["contribution"])
    image, total, _, bars, *tiles = figure.get_axes()
    picture = inspection.images[entry["image"]]
    assert np.allclose(image.get_images()[0].get_array(), to_array(picture) / 255, atol=1e-6)
    rest = sum(group["contribution"] for group in entry["groups"][8:])
    expected = [*(group["contribution"] for group in shown), rest, entry["bias"]]
    assert [bar.get_width() for bar in bars.patches] == pytest.approx(expected)
    assert sum(expected) == pytest.approx(entry["logits"][0] - entry["logits"][1])
    labels = [text.get_text() for text in bars.get_yticklabels()]
    others = len(entry["groups"]) - len(shown)
    groups = [f"channel {group['representative']}" for group in shown]
    assert [label.split("\n")[0] for label in labels] == [*groups, f"{others} other groups", "bias"]
    more = [int(label.split()[3]) if "like" in label else 0 for label in labels[: len(shown)]]
    assert more == [len(group["channels"]) - 1 for group in shown]
    assert len(tiles) == 5 * len(shown)
    maps = torch.tensor([group["map"] for group in shown])
    expected = evidence_over_image(to_array(picture) / 255, maps, maps.abs().max().item())  # one scale
    for row, group in enumerate(shown):
        first, *examples = [axes.get_images()[0].get_array() for axes in tiles[5 * row : 5 * row + 5]]
        assert np.allclose(first, expected[row], atol=1e-5)
        best = most_exciting(inspection, group["channels"])
        # at 32x32, conv5_x has one position: no part of an image responds less than another
        assert np.allclose(examples, to_array(inspection.images[best]) / 255, atol=1e-6)
    text = " ".join(figure.get_axes()[2].texts[0].get_text().replace("\N{MINUS SIGN}", "-").split())
    total = sum(group["contribution"] for group in entry["groups"])
    assert f"bias {entry['bias']:+.2f} plus 10 groups {total:+.2f}" in text
    assert f"sum to {total - rest:+.2f}" in text


def test_examples_are_pale_where_the_group_responds_little(inspection):
    class Network:
        def trace(self, inputs, stage):
            maps = torch.zeros(len(inputs), 512, 2, 2)
            maps[:, 3] = torch.tensor([[4.0, 0], [0, 0]])
            return SimpleNamespace(features={stage: maps})

    examples = mask_examples(replace(inspection, network=Network()), [3, 4])
    whole = to_array(inspection.images[most_exciting(inspection, (3, 4))]) / 255
    assert np.allclose(examples[:, :8, :8], whole[:, :8, :8], atol=1e-6)
    assert np.allclose(examples[:, 16:], 0.75 + 0.25 * whole[:, 16:], atol=1e-6)


def test_classes_by_name_and_number(inspection):
    assert class_numbers(("dog", "0"), ("cat", "1", "dog")) == (2, 0)
    assert class_numbers(("1", "cat"), ("cat", "1", "dog")) == (1, 0)
    _, entries = draw(inspection, Settings(classes=("ring", "2")))
    assert entries[0]["classes"] == ["ring", inspection.metadata.classes[2]]


def test_without_mistakes_their_figure_is_left_out(inspection, capsys):
    right = replace(inspection, labels=inspection.search.logits.argmax(1), pictures=())
    assert draw(right) == ({}, [])
    assert capsys.readouterr().out == "why_mistake: left out, there are no mistakes in 12 test images\n"
    assert draw(replace(right, label_names=("disk", "ring", "cross"))) == ({}, [])
    assert "it needs test images of the network's classes" in capsys.readouterr().out


def test_it_needs_activations_of_the_last_stage(inspection):
    for peaks, reason in (
        ({"conv1": torch.ones(12, 64)}, "conv5_x among the --stages"),
        ({"conv5_x": torch.zeros(12, 512)}, "no channel has any activation at conv5_x"),
    ):
        with pytest.raises(NotDrawn, match=reason):
            draw(replace(inspection, search=replace(inspection.search, peaks=peaks)))


def test_evidence_over_an_image():
    image = np.full((4, 6, 3), 0.5)
    found = evidence_over_image(image, torch.tensor([[[0.0, 1, -1], [2, 0.5, 0]]]), 1.0)[0]
    light = found[0, 0]
    assert found.shape == (4, 6, 3) and np.allclose(light, light[0]) and light[0] > 0.5
    for (row, column), color in {(0, 2): FOR, (0, 4): AGAINST, (2, 0): FOR}.items():  # beyond the limit: clipped
        assert np.allclose(found[row : row + 2, column : column + 2], light * to_rgb(color))
    assert np.allclose(found[3, 3], light * (1 + np.array(to_rgb(FOR))) / 2)
    assert np.allclose(evidence_over_image(image, torch.zeros(1, 2, 3), 0.0)[0], light)


@pytest.mark.parametrize("classes, words", [(("disk", "cow"), "cow: the network's classes are disk, ring, stripes"),
                                            (("1", "ring"), "two different")], ids=" ".join)  # fmt: skip
def test_wrong_classes_are_a_usage_error(small_run, tmp_path, capsys, classes, words):
    flags = ["--ckpt", small_run / "model.pt", "--device", "cpu", "--figures", "why", "--out", tmp_path / "plots"]
    ends(capsys, visualizer.main, [*flags, "--classes", *classes], 2, "--classes", words)
    assert not (tmp_path / "plots").exists()


def test_ones_own_picture(small_run, tmp_path):
    """It needs a search of the test images: drawn when asked for, or when a gallery searches anyway."""
    picture = next((small_run.parent / "pictures" / "test" / "ring").iterdir())
    flags = ["--images", str(picture), "--stages", "conv5_x", "--figures", "why", "--classes", "2", "disk"]
    visualize(small_run, tmp_path, *flags)
    assert [path.name for path in (tmp_path / picture.stem).iterdir()] == ["why.png"]
    entry = json.loads((tmp_path / "why.json").read_text())[0]
    assert entry["image"] == picture.name and entry["classes"] == ["stripes", "disk"]
    for more, drawn in (([], False), (["--gallery"], True)):
        flags = ["--ckpt", str(small_run / "model.pt"), "--device", "cpu", "--images", str(picture), *more]
        _, names, _ = visualizer.load_what_is_needed(visualizer.parse_args(flags), SETTINGS)
        assert "classes" in names and ("why" in names) == drawn
