"""The numbers under the comparisons, against autograd, brute force and what must hold."""

import shutil

import numpy as np
import pytest
import torch

import train
import visualizer
from analysis.inspection import Subject
from figures import rules
from network import STAGES, ResNet18
from reverse_network import ReverseResNet18
from runtime import checkpoint


@pytest.fixture
def subject(small_run):
    return Subject(visualizer.parse_args(["--ckpt", str(small_run / "model.pt"), "--device", "cpu"]))


def ranks(values):
    """By definition: how many are smaller, and half of those that are equal."""
    return [
        (sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2) for value in values
    ]


class TestRankCorrelation:
    def test_by_definition(self):
        random = np.random.RandomState(0)
        a, b = random.randint(0, 9, (2, 5, 8))  # with many equals
        expected = np.corrcoef(ranks(a.flatten()), ranks(b.flatten()))[0, 1]
        assert rules.rank_correlation(a, b) == pytest.approx(expected, abs=1e-12)

    def test_it_sees_the_order_alone(self):
        a = np.random.RandomState(0).rand(6, 7)
        assert rules.rank_correlation(a, np.exp(5 * a)) == pytest.approx(1)
        assert rules.rank_correlation(a, -(a**3)) == pytest.approx(-1)
        assert rules.rank_correlation(a, np.zeros_like(a)) is None


def test_edges_are_where_grey_changes():
    images = torch.zeros(1, 3, 8, 10)
    images[..., 5:] = 1
    found = rules.edges(images)
    assert found.shape == images.shape and torch.equal(found[0, 0], found[0, 2])
    assert set(found[0, 0].amax(0).nonzero().flatten().tolist()) == {4, 5}
    assert torch.allclose(found[0, 0, :, 4], torch.ones(8))  # a step of 1
    assert not rules.edges(torch.full((1, 3, 8, 8), 0.7)).abs().gt(1e-6).any()


def test_weights_become_random_from_the_top_down():
    torch.manual_seed(1)
    network = ResNet18(4).eval()
    for value in network.parameters():
        torch.nn.init.normal_(value)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    parts = {stage: rules.PARTS[stage] for stage in STAGES}
    names = []
    for count, (name, found) in enumerate(rules.randomised(network, "conv4_x")):
        names.append(name)
        changed = {
            name.split(".")[0] for name, value in found.state_dict().items() if not torch.equal(value, before[name])
        }
        random = [part for stage in ("conv4_x", "conv3_x", "conv2_x", "conv1")[:count] for part in parts[stage]]
        assert changed == set(random) and not found.training
    assert names == ["trained", "conv4_x random", "+ conv3_x", "+ conv2_x", "+ conv1"]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_case_is_of_the_strongest_units(subject):
    case = rules.Case(subject, "conv5_x")
    assert len(case.channels) == len(case.images) == len(case.captions) == rules.CHANNELS
    features = subject.network.trace(subject.preprocess(subject.test[0])).features["conv5_x"]
    for channel, position, caption in zip(case.channels, case.positions, case.captions, strict=True):
        peak, image = features[:, channel].flatten(1).max(1).values.max(0)
        assert features[image, channel].flatten()[position].item() == pytest.approx(peak.item(), rel=1e-5)
        assert caption.startswith(f"channel {channel}\nimage {image}\nactivation {peak:.2f}")


def test_a_case_of_a_limited_search(small_run):
    flags = ["--ckpt", str(small_run / "model.pt"), "--device", "cpu", "--limit", "5"]
    subject = Subject(visualizer.parse_args(flags))
    top = subject.top["conv5_x"]
    subject.args.channels = ((top.scores[:, 0] > 0) & (top.indices[:, 0] > 0)).nonzero().flatten().tolist()
    case = rules.Case(subject, "conv5_x")
    assert case.channels
    peaks = subject.network.trace(subject.preprocess(subject.test[0])).features["conv5_x"].amax((2, 3))
    for channel, (index, score), image in zip(case.channels, case.numbers, case.images, strict=True):
        assert index in (2, 4, 7, 9) and torch.equal(image, subject.test[0][index])
        assert peaks[index, channel].item() == pytest.approx(score, rel=1e-5)


def test_what_is_no_share_is_a_dash():
    shares = rules.ratios(torch.tensor([1.0, 0.0]), torch.tensor([4.0, 0.0]))
    assert shares == [0.25, None] and [rules.number(share, ".2g") for share in shares] == ["0.25", "–"]


def shown(figure, column, rows):
    """The tiles of a column of a comparison, as values from -1 to 1 around grey."""
    across = len(figure.get_axes()) // rows
    tiles = [figure.get_axes()[row * across + column].get_images()[0].get_array() for row in range(rows)]
    return np.stack([2 * np.asarray(tile) - 1 for tile in tiles])


@pytest.mark.parametrize(
    "draw, mirrors",
    [
        (rules.draw_rules, {rule: {"rule": rule} for rule in ("gradient", "guided", "deconvnet")}),
        (
            rules.draw_branches,
            {branches: {"rule": "deconvnet", "branches": branches} for branches in ("both", "residual", "shortcut")},
        ),
    ],
)
def test_tiles_are_the_mirrors_under_its_name(subject, draw, mirrors):
    """Of 32x32 images the whole is shown, each on its own scale."""
    ((_, figure),) = draw(subject)
    case = rules.Case(subject, "conv5_x")
    names = [axes.get_title() for axes in figure.get_axes() if axes.get_title()]
    assert names[0] == "image" and set(names[1:]) == set(mirrors)
    drawn = {}
    with torch.inference_mode():
        trace = subject.network.trace(subject.preprocess(case.images))
        signal = rules.isolate(trace.features["conv5_x"], case.channels, "peak")
        for name, how in mirrors.items():
            drawn[name] = ReverseResNet18(subject.network, **how)(signal, "conv5_x", trace)
    for column, name in enumerate(names[1:], 1):
        expected = drawn[name].permute(0, 2, 3, 1).numpy()
        limits = np.abs(expected).max((1, 2, 3), keepdims=True)
        assert np.allclose(shown(figure, column, len(expected)), expected / limits, atol=1e-4), name
        if draw is rules.draw_branches and name != "both":
            shares = drawn[name].flatten(1).norm(dim=1) / drawn["both"].flatten(1).norm(dim=1)
            labels = [axes.get_xlabel() for axes in figure.get_axes()[column :: len(names)]]
            assert [label.split("norm ")[1] for label in labels] == [f"{share:.2g}" for share in shares.tolist()]


def test_the_unpoolings_error_is_that_of_the_whole_pictures(subject):
    ((_, figure),) = rules.draw_unpooling(subject)
    case = rules.Case(subject, "conv5_x")
    exact, other = (
        case.reconstruct(ReverseResNet18(subject.network, "deconvnet", how)) for how in ("sum", "overwrite")
    )
    difference = (other - exact).permute(0, 2, 3, 1).numpy()
    limits = exact.abs().amax((1, 2, 3))[:, None, None, None].numpy()
    expected = (difference / limits).clip(-1, 1)
    assert np.allclose(shown(figure, 3, len(expected)), expected, atol=1e-4)
    errors = ((exact - other).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)).tolist()
    labels = [axes.get_xlabel() for axes in figure.get_axes() if axes.get_xlabel().startswith("error")]
    assert labels == [f"error {error:.0%}" for error in errors]
    assert f"mean error {np.mean(errors):.0%}" in figure.get_suptitle()
    assert min(errors) > 0.05  # there is something to show


def test_a_trained_networks_picture_is_like_itself(subject):
    ((_, figure),) = rules.draw_sanity(subject)
    axes = figure.get_axes()
    columns = [column.get_title() for column in axes[:8]]
    assert columns == ["image", "trained", "conv5_x random", "+ conv4_x", "+ conv3_x", "+ conv2_x", "+ conv1", "edges"]
    assert {axes[1 + 8 * row].get_xlabel() for row in range(6)} == {"1.00"}
    case = rules.Case(subject, "conv5_x")
    rows = [(rule, place) for rule in ("gradient", "guided", "deconvnet") for place in range(2)]
    images = subject.preprocess(case.images[:2])
    for column, (_, network) in enumerate(rules.randomised(subject.network, "conv5_x"), 1):
        tiles = shown(figure, column, len(rows))
        for (rule, place), tile, left in zip(rows, tiles, axes[::8], strict=True):
            assert left.get_ylabel() == f"{rule}\nchannel {case.channels[place]}"
            with torch.inference_mode():
                trace = network.trace(images[place : place + 1])
                signal = rules.isolate(trace.features["conv5_x"], case.channels[place])
                expected = ReverseResNet18(network, rule)(signal, "conv5_x", trace)[0].permute(1, 2, 0)
            assert np.allclose(tile, expected / expected.abs().max().clamp(min=1e-30), atol=1e-4), (column, rule)
    for (_, place), tile in zip(rows, shown(figure, 7, len(rows)), strict=True):
        edge = rules.edges(case.images[place : place + 1] / 255)[0].permute(1, 2, 0)
        assert np.allclose(tile, edge / edge.max(), atol=1e-4)


@pytest.mark.parametrize(
    "flags", ["--channels {alive}", "--channels all", "--limit 1", "--top 1", "--limit 3 --top 25"]
)
def test_odd_but_legal(subject, small_run, tmp_path, flags):
    """One channel, all of them, fewer images than rows or tiles."""
    flags = flags.format(alive=subject.chosen("conv5_x")[0])
    flags = f"--figures rules unpooling sanity confusion_matrix mistakes --device cpu --stages conv5_x {flags}".split()
    visualizer.main(["--ckpt", str(small_run / "model.pt"), "--out", str(tmp_path), *flags])
    assert {"rules.png", "sanity.png", "unpooling.png", "summary.json"} <= {file.name for file in tmp_path.iterdir()}


class TestEvolution:
    def test_it_needs_snapshots(self, subject, capsys):
        assert not list(rules.draw_evolution(subject))
        assert "train.py --snapshots" in capsys.readouterr().out

    def test_each_column_is_its_epochs_network(self, small_run, tmp_path):
        pictures = small_run.parent / "pictures"
        flags = "--image-size 32 --batch-size 16 --epochs 3 --snapshots 1 2 3 --device cpu".split()
        train.main(["--data", str(pictures), "--out", str(tmp_path), *flags])
        assert list(checkpoint.snapshots(tmp_path)) == [1, 2, 3]
        flags = ["--ckpt", str(tmp_path / "model.pt"), "--device", "cpu", "--rules", "guided"]
        subject = Subject(visualizer.parse_args(flags))
        ((_, figure),) = rules.draw_evolution(subject)
        axes = figure.get_axes()
        assert [column.get_title() for column in axes[:4]] == ["image", "epoch 1", "epoch 2", "epoch 3"]
        channel = int(axes[0].get_ylabel().split()[1])
        for place, file in ((1, "snapshot_1.pt"), (2, "snapshot_2.pt"), (3, "model.pt")):
            network, info = checkpoint.load_network(tmp_path / file)
            with torch.inference_mode():
                features = network.trace(subject.preprocess(subject.test[0])).features["conv5_x"][:, channel]
            score, image = features.flatten(1).max(1).values.max(0)
            assert axes[place].get_xlabel() == f"image {image}\n{score:.2f}"
            with torch.inference_mode():
                trace = network.trace(subject.preprocess(subject.test[0][image : image + 1]))
                signal = rules.isolate(trace.features["conv5_x"], channel, "peak")
                expected = ReverseResNet18(network, "guided")(signal, "conv5_x", trace)[0].permute(1, 2, 0)
            tile = 2 * np.asarray(axes[place].get_images()[0].get_array()) - 1
            assert np.allclose(tile, expected / expected.abs().max(), atol=1e-4), file

    def test_of_a_run_and_not_of_what_lies_beside_it(self, small_run, tmp_path, capsys):
        for name in ("snapshot_1.pt", "other.pt", "model.pt"):
            shutil.copy(small_run / "model.pt", tmp_path / name)
        drawn = {}
        for name in ("snapshot_1.pt", "other.pt", "model.pt", "."):
            subject = Subject(visualizer.parse_args(["--ckpt", str(tmp_path / name), "--device", "cpu"]))
            drawn[name] = len(list(rules.draw_evolution(subject)))
        assert drawn == {"snapshot_1.pt": 0, "other.pt": 0, "model.pt": 1, ".": 1}

    def test_a_new_run_has_nothing_of_an_old_ones(self, small_run, tmp_path):
        flags = ["--data", str(small_run.parent / "pictures"), "--out", str(tmp_path), "--image-size", "32"]
        train.main([*flags, "--epochs", "1", "--snapshots", "1"])
        train.main([*flags, "--epochs", "1", "--overwrite"])
        assert not checkpoint.snapshots(tmp_path)
