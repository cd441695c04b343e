"""Units without the blocks that a picture marks: against receptive fields, brute force and the whole image."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from analysis.blocks import estimate
from analysis.importance import METHODS as CLASS_METHODS
from analysis.inspection import inspect
from analysis.receptive_field import (
    blocks_seen,
    crop_to_receptive_field,
    locate_units,
    receptive_field,
    units_inside,
)
from analysis.relevance import pixel_box, relevance_of_units
from analysis.settings import Settings
from figures.faithfulness import class_scores, faithfulness_figure
from figures.style import format_percent
from figures.top9 import draw_top9
from figures.unit_faithfulness import (
    CHANGES,
    METHODS,
    SQUARE,
    TURNED,
    channel_shares,
    square_importance,
    stage_content,
    surviving_shares,
    turn_about_unit,
    unit_relevance,
)
from reverse_network import isolate

SIZE = (130, 110)
BOX = pixel_box([0.5] * 3, [0.1] * 3)
# all units of conv4_x see the padding
STAGES_AND_BORDER = [*product(("conv1", "conv2_x", "conv3_x"), (True, False)), ("conv4_x", True)]


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def live_units(network, stage, images, border):
    """One unit of each image that is on: in a corner, or anywhere that sees no padding."""
    features = network.trace(images, stage).features[stage]
    height, width = features.shape[2:]
    rows, columns = slice(0, 2), slice(0, 2)
    if not border:
        rows, columns = (units_inside(network, stage, length, least=0) for length in SIZE)
    part = torch.full_like(features, -1)
    part[:, :, rows, columns] = features[:, :, rows, columns]
    best = part.flatten(1).argmax(1)
    channels, positions = best // (height * width), best % (height * width)
    assert (part.flatten(1).amax(1) > 0).all()
    return locate_units(network, stage, images, channels, positions)


def activations(network, units, inputs):
    features = network.trace(inputs, units.stage).features[units.stage]
    return features[torch.arange(len(inputs)), units.channels, units.cells[:, 0], units.cells[:, 1]]


@pytest.mark.parametrize("stage, border", STAGES_AND_BORDER)
def test_blocks_outside_the_receptive_field_change_a_unit_by_exactly_0(random_network, images, stage, border):
    with torch.inference_mode():
        units = live_units(random_network, stage, images, border)
        seen = blocks_seen(units)
        pixels = seen.unflatten(1, (-(-SIZE[0] // units.block), -1))
        pixels = pixels.repeat_interleave(units.block, 1).repeat_interleave(units.block, 2)
        pixels = pixels[:, None, : SIZE[0], : SIZE[1]]
        whole = activations(random_network, units, images)
        assert torch.equal(activations(random_network, units, images * pixels), whole)
        assert (activations(random_network, units, images * ~pixels) - whole).abs().min() > 1e-3 * whole.abs().max()


@pytest.mark.parametrize("stage, border", STAGES_AND_BORDER)
def test_a_unit_in_the_crop_of_what_it_sees_is_the_unit_in_the_image(random_network, images, stage, border):
    maps = {"row": torch.arange(SIZE[0])[:, None].expand(4, *SIZE), "column": torch.arange(SIZE[1]).expand(4, *SIZE)}
    with torch.inference_mode():
        units = live_units(random_network, stage, images, border)
        whole = activations(random_network, units, images)
        features = (trace := random_network.trace(images, stage)).features[stage]
        signal = isolate(features, units.channels, units.cells[:, 0] * features.shape[3] + units.cells[:, 1])
        relevance = relevance_of_units(random_network, images, trace, signal, stage, BOX).sum(1)
        groups = list(crop_to_receptive_field(random_network, units, maps))
        for members, cropped, crops in groups:
            of_crops = activations(random_network, cropped, cropped.inputs)
            assert of_crops.tolist() == pytest.approx(whole[members].tolist(), rel=1e-10)
            height, width = cropped.inputs.shape[-2:]
            relevant = unit_relevance(random_network, cropped, BOX)
            assert height <= min(receptive_field(random_network, stage).size + 15, SIZE[0] - 1)
            for m, n in enumerate(members):
                row, column = units.corners[n] - cropped.corners[m]
                assert torch.equal(cropped.inputs[m], images[n, :, row : row + height, column : column + width])
                inside = relevance[n, row : row + height, column : column + width]
                assert (relevant[m] - inside).norm() < 1e-10 * relevance[n].norm()
                assert torch.equal(crops["row"][m, :, 0], torch.arange(row, row + height))
                assert torch.equal(crops["column"][m, 0], torch.arange(column, column + width))
    assert torch.cat([members for members, _, _ in groups]).sort().values.tolist() == [0, 1, 2, 3]


def test_blocks_seen_by_pixel(random_network, images):
    units = locate_units(random_network, "conv2_x", images[:2], torch.tensor([0, 0]), torch.tensor([0, 28 * 12 + 20]))
    assert units.block == 2 and units.cells.tolist() == [[0, 0], [12, 20]]
    for n, seen in enumerate(blocks_seen(units)):
        (top, left), size = units.corners[n].tolist(), units.size
        expected = [
            any(top <= row + y < top + size and left <= column + x < left + size for y in (0, 1) for x in (0, 1))
            for row in range(0, SIZE[0], 2)
            for column in range(0, SIZE[1], 2)
        ]
        assert seen.tolist() == expected


def test_a_turned_map_is_the_map_seen_from_the_other_side(random_network):
    images, maps = torch.zeros(2, 3, 20, 16), torch.rand(2, 20, 16)
    units = locate_units(random_network, "conv1", images, torch.tensor([0, 1]), torch.tensor([8 * 5 + 4, 8 * 1 + 7]))
    assert units.centers.tolist() == [[10, 8], [2, 14]]
    turned = turn_about_unit(maps, units)
    for n, row, column in np.ndindex(2, 20, 16):
        y, x = (int(2 * center - place) for center, place in zip(units.centers[n], (row, column), strict=True))
        expected = maps[n, y, x] if 0 <= y < 20 and 0 <= x < 16 else 0
        assert turned[n, row, column] == expected


def test_the_nearest_blocks_are_a_square(random_network):
    units = locate_units(
        random_network, "conv1", torch.zeros(1, 3, 20, 16), torch.tensor([0]), torch.tensor([8 * 5 + 4])
    )
    order = square_importance(units)[0].argsort(descending=True)
    assert units.block == 1
    for side in (1, 3, 5):
        rows, columns = order[: side**2] // 16, order[: side**2] % 16
        assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == {
            (10 + y - side // 2, 8 + x - side // 2) for y in range(side) for x in range(side)
        }


@pytest.mark.parametrize("batch_size", [5, 1000])
def test_shares_by_definition(random_network, images, batch_size):
    with torch.inference_mode():
        units = live_units(random_network, "conv2_x", images[:2], border=True)
        importance = {name: torch.rand(2, 65 * 55, dtype=torch.float64) for name in ("a", "b")}
        found = surviving_shares(random_network, units, importance, CHANGES, batch_size)
        assert found.keys() == importance.keys()
        whole = activations(random_network, units, images[:2])
        for name, each in importance.items():
            for change, (kind, share) in enumerate(CHANGES):
                changed = images[:2].clone()
                for n, seen in enumerate(blocks_seen(units)):
                    count = round(share * seen.sum().item())
                    least = each[n][seen].sort(descending=True).values[count - 1]
                    chosen = (seen & (each[n] >= least)).numpy().reshape(65, 55)
                    mask = np.kron(chosen != (kind == "removed"), np.ones((2, 2)))
                    changed[n] *= torch.from_numpy(mask)
                expected = activations(random_network, units, changed) / whole
                assert found[name][:, change].tolist() == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-12)


SETTINGS = Settings(rules=("guided",))


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", SETTINGS, "cpu")


class TestChannels:
    @pytest.mark.parametrize("method", ["guided", "relevance"])
    def test_conv1_by_pixel(self, inspection, method):
        """Blocks are pixels there; guided is the filter, relevance by autograd from Montavon et al. 2017, table 1."""
        channel = int(inspection.search.top["conv1"].scores[:, 1].argmax())
        channels, by_method = channel_shares(inspection, SETTINGS, "conv1", [channel], count=2)
        assert channels == [channel] and by_method.keys() == set(METHODS)
        top, network, left = inspection.search.top["conv1"], inspection.network, []
        weight = network.conv1.weight[channel] * network.bn1.weight[channel].sign()
        for index, position in zip(top.indices[channel, :2], top.positions[channel, :2].tolist(), strict=True):
            image = inspection.inputs(inspection.images[index][None])
            row, column = divmod(position, 16)
            box = pixel_box(inspection.metadata.mean, inspection.metadata.std)
            window = image[0, :, 2 * row - 3 : 2 * row + 4, 2 * column - 3 : 2 * column + 4]
            pixels = torch.stack([window, *(color.expand(3, 7, 7) for color in box)]).requires_grad_()
            score = (torch.stack([weight, -weight.clamp(min=0), -weight.clamp(max=0)]).detach() * pixels).sum()
            relevance = (pixels * torch.autograd.grad(score, pixels)[0]).sum(0)
            importance = relevance if method == "relevance" else weight.abs()
            order = importance.sum(0).flatten().argsort(descending=True)[: round(0.1 * 49)]
            mask = torch.zeros(32, 32)
            mask[2 * row - 3 + order // 7, 2 * column - 3 + order % 7] = 1
            with torch.inference_mode():
                inputs = torch.cat([image, image * (1 - mask), image * mask])
                left.append(network.trace(inputs, "conv1").features["conv1"][:, channel, row, column])
        shares = dict(zip(CHANGES, by_method[method][0].tolist(), strict=True))
        removed, kept = (torch.stack(left)[:, 1:] / torch.stack(left)[:, :1]).mean(0)
        assert shares["removed", 0.1] == pytest.approx(removed.item(), rel=1e-3)
        assert shares["kept", 0.1] == pytest.approx(kept.item(), rel=1e-3)

    def test_dead_channels_are_left_out(self, inspection):
        top = inspection.search.top["conv5_x"]
        dead = top.scores.clone()
        dead[3] = 0
        dead[4, 1:] = 0
        search = replace(inspection.search, top={"conv5_x": replace(top, scores=dead)})
        with_dead = replace(inspection, search=search)
        assert channel_shares(with_dead, SETTINGS, "conv5_x", [3], count=2) == ([], {})
        channels, shares = channel_shares(with_dead, SETTINGS, "conv5_x", [3, 4], count=2)
        assert channels == [4] and shares["guided"].shape == (1, len(CHANGES))

    def test_a_unit_that_rounding_turns_off_does_not_count(self, inspection):
        """The search found it on, the forward pass with removed blocks finds 0: its shares are not defined."""
        top = inspection.search.top["conv1"]
        images = inspection.top_images(top, slice(None))[:, 1]
        with torch.inference_mode():
            maps = inspection.network.trace(inspection.inputs(inspection.images[images]), "conv1").features["conv1"]
        off = torch.stack([maps[n, n] for n in range(64)]).flatten(1)  # each channel's map of its second image
        channel = int(torch.where(off.amin(1) == 0, top.scores[:, 1], -1).argmax())
        positions = top.positions.clone()
        positions[channel, 1] = off[channel].argmin()

        def shares(ranks):
            one = replace(
                top, scores=top.scores[:, ranks], indices=top.indices[:, ranks], positions=positions[:, ranks]
            )
            search = replace(inspection.search, top={"conv1": one})
            return channel_shares(replace(inspection, search=search), SETTINGS, "conv1", [channel], count=2)

        expected = shares([0])[1]
        for name, by_channel in shares([0, 1])[1].items():
            assert by_channel.flatten().tolist() == pytest.approx(expected[name].flatten().tolist(), abs=1e-3), name
        assert shares([1]) == ([], {})


def test_the_json_has_means_differences_and_channels():
    shares = {name: torch.rand(4, len(CHANGES)) for name in METHODS}
    content = stage_content((7, 1, 30, 4), shares)
    assert list(content) == list(METHODS)
    for change, (kind, share) in enumerate(CHANGES):
        for name, found in content.items():
            values = shares[name][:, change]
            expected = estimate(values)
            assert found[kind][str(share)] == {"mean": expected.mean, "low": expected.low, "high": expected.high}
            assert [found["by_channel"][str(n)][kind][str(share)] for n in (7, 1, 30, 4)] == values.tolist()
            assert ("minus_turned" in found) == (name in TURNED)
            if name in TURNED:
                difference = (values - shares[TURNED[name]][:, change]).mean().item()
                assert found["minus_turned"][kind][str(share)]["mean"] == pytest.approx(difference, abs=1e-6)


def test_dots_show_a_tenth_removed_and_kept():
    shares = {name: torch.rand(4, len(CHANGES)) for name in METHODS}
    content = {
        "images": [3, 5],
        "block": 8,
        "methods": class_scores(torch.rand(2, len(CLASS_METHODS), 2, 10)),
        "channels": {"conv5_x": stage_content((7, 1, 30, 4), shares)},
    }
    figure = faithfulness_figure(content, {"conv5_x": "a title"})
    axes = figure.get_axes()[-1]
    assert axes.get_title("left") == "a title"
    assert [label.get_text() for label in axes.get_yticklabels()] == list(METHODS)
    dots = {(line.get_ydata()[0], line.get_markerfacecolor() == "white"): line.get_xdata()[0]
            for line in axes.get_lines() if len(line.get_xdata()) == 1}  # fmt: skip
    for row, name in enumerate(METHODS):
        for hollow, change in ((True, ("removed", 0.1)), (False, ("kept", 0.1))):
            assert dots[row, hollow] == pytest.approx(shares[name][:, CHANGES.index(change)].mean().item())


def test_a_large_figure_says_what_a_tenth_keeps(inspection):
    channel = int(inspection.search.top["conv5_x"].scores[:, 8].argmax())
    settings = replace(SETTINGS, stages=("conv5_x",), channels=(channel,))
    (_, figure), _, (_, entries) = draw_top9(inspection, settings)
    expected = channel_shares(inspection, settings, "conv5_x", [channel])[1]
    kept = entries[0]["kept"]
    assert kept.keys() == {"guided", SQUARE}
    for name, share in kept.items():
        assert share == pytest.approx(expected[name][0, CHANGES.index(("kept", 0.1))].item(), abs=1e-3)
        assert f"{name} {format_percent(share)}" in figure.get_supxlabel().replace("\n", " ")
