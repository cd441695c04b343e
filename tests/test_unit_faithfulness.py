"""Units without the blocks that a picture marks: against receptive fields, brute force and the whole image."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from analysis.blocks import estimate
from analysis.importance import METHODS as CLASS_METHODS
from analysis.inspection import inspect
from analysis.receptive_field import blocks_seen, crop_to_receptive_field, locate_units, receptive_field, units_inside
from analysis.relevance import pixel_box
from analysis.settings import Settings
from figures import unit_faithfulness as uf
from figures.faithfulness import class_scores, faithfulness_figure
from figures.style import format_percent
from figures.top9 import draw_top9

SIZE = (130, 110)
SETTINGS = Settings(rules=("guided",))


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", SETTINGS, "cpu")


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
    assert (part.flatten(1).amax(1) > 0).all()
    return locate_units(network, stage, images, best // (height * width), best % (height * width))


def activations(network, units, inputs):
    features = network.trace(inputs, units.stage).features[units.stage]
    return features[torch.arange(len(inputs)), units.channels, units.cells[:, 0], units.cells[:, 1]]


# all units of conv4_x see the padding
@pytest.mark.parametrize("stage, border", [*product(("conv1", "conv2_x", "conv3_x"), (True, False)), ("conv4_x", True)])
@torch.inference_mode()
def test_a_unit_is_the_same_without_what_it_does_not_see(random_network, images, stage, border):
    """Blocks outside the receptive field change it by exactly 0; in the crop to what it sees, it is the same unit."""
    units = live_units(random_network, stage, images, border)
    inside = torch.zeros(4, 1, *SIZE)
    for pixels, (top, left) in zip(inside, units.corners.tolist(), strict=True):
        pixels[0, max(top, 0) : top + units.size, max(left, 0) : left + units.size] = 1
    seen = F.max_pool2d(inside, units.block, ceil_mode=True)
    assert torch.equal(blocks_seen(units), seen.flatten(1) > 0)
    pixels = seen.repeat_interleave(units.block, 2).repeat_interleave(units.block, 3)[:, :, : SIZE[0], : SIZE[1]] > 0
    whole = activations(random_network, units, images)
    assert torch.equal(activations(random_network, units, images * pixels), whole)
    assert (activations(random_network, units, images * ~pixels) - whole).abs().min() > 1e-3 * whole.abs().max()
    maps = {"row": torch.arange(SIZE[0])[:, None].expand(4, *SIZE), "column": torch.arange(SIZE[1]).expand(4, *SIZE)}
    groups = list(crop_to_receptive_field(random_network, units, maps))
    for members, cropped, crops in groups:
        of_crops = activations(random_network, cropped, cropped.inputs)
        assert of_crops.tolist() == pytest.approx(whole[members].tolist(), rel=1e-10)
        height, width = cropped.inputs.shape[-2:]
        assert height <= min(receptive_field(random_network, stage).size + 15, SIZE[0] - 1)
        for m, n in enumerate(members):
            row, column = units.corners[n] - cropped.corners[m]
            assert torch.equal(cropped.inputs[m], images[n, :, row : row + height, column : column + width])
            assert torch.equal(crops["row"][m, :, 0], torch.arange(row, row + height))
            assert torch.equal(crops["column"][m, 0], torch.arange(column, column + width))
    assert torch.cat([members for members, _, _ in groups]).sort().values.tolist() == [0, 1, 2, 3]


def test_a_turned_map_and_the_nearest_blocks(random_network):
    """The map seen from the other side of the unit; the first blocks form a square around it."""
    images, maps = torch.zeros(2, 3, 20, 16), torch.rand(2, 20, 16)
    units = locate_units(random_network, "conv1", images, torch.tensor([0, 1]), torch.tensor([8 * 5 + 4, 8 * 1 + 7]))
    assert units.centers.tolist() == [[10, 8], [2, 14]] and units.block == 1
    turned = uf.turn_about_unit(maps, units)
    for n, row, column in np.ndindex(2, 20, 16):
        y, x = (int(2 * center - pixel) for center, pixel in zip(units.centers[n], (row, column), strict=True))
        assert turned[n, row, column] == (maps[n, y, x] if 0 <= y < 20 and 0 <= x < 16 else 0)
    order = uf.square_importance(units)[0].argsort(descending=True)
    for side in (1, 3, 5):
        offsets = range(-(side // 2), side // 2 + 1)
        assert set(order[: side**2].tolist()) == {(10 + y) * 16 + 8 + x for y in offsets for x in offsets}


@pytest.mark.parametrize("batch_size", [5, 1000])
@torch.inference_mode()
def test_shares_by_definition(random_network, images, batch_size):
    units = live_units(random_network, "conv2_x", images[:2], border=True)
    importance = {name: torch.rand(2, 65 * 55, dtype=torch.float64) for name in ("a", "b")}
    shares = uf.surviving_shares(random_network, units, importance, uf.CHANGES, batch_size)
    whole = activations(random_network, units, images[:2])
    for name, change in product(importance, range(len(uf.CHANGES))):
        (kind, share), changed = uf.CHANGES[change], images[:2].clone()
        for n, seen in enumerate(blocks_seen(units)):
            count = round(share * seen.sum().item())
            least = importance[name][n][seen].sort(descending=True).values[count - 1]
            chosen = (seen & (importance[name][n] >= least)).numpy().reshape(65, 55)
            changed[n] *= torch.from_numpy(np.kron(chosen != (kind == "removed"), np.ones((2, 2))))
        expected = activations(random_network, units, changed) / whole
        assert shares[name][:, change].tolist() == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("method", ["guided", "relevance"])
def test_conv1_by_pixel(inspection, method):
    """Blocks are pixels there; guided is the filter, relevance by autograd from Montavon et al. 2017, table 1."""
    channel = int(inspection.search.top["conv1"].scores[:, 1].argmax())
    channels, by_method = uf.channel_shares(inspection, SETTINGS, "conv1", [channel], count=2)
    assert channels == [channel] and by_method.keys() == set(uf.METHODS)
    top, network, left = inspection.search.top["conv1"], inspection.network, []
    weight = (network.conv1.weight[channel] * network.bn1.weight[channel].sign()).detach()
    for index, position in zip(top.indices[channel, :2], top.positions[channel, :2].tolist(), strict=True):
        image = inspection.inputs(inspection.images[index][None])
        row, column = divmod(position, 16)
        window = image[0, :, 2 * row - 3 : 2 * row + 4, 2 * column - 3 : 2 * column + 4]
        box = (color.expand(3, 7, 7) for color in pixel_box(inspection.metadata.mean, inspection.metadata.std))
        pixels = torch.stack([window, *box]).requires_grad_()
        score = (torch.stack([weight, -weight.clamp(min=0), -weight.clamp(max=0)]) * pixels).sum()
        relevance = (pixels * torch.autograd.grad(score, pixels)[0]).sum((0, 1))
        importance = relevance if method == "relevance" else weight.abs().sum(0)
        order = importance.flatten().argsort(descending=True)[: round(0.1 * 49)]
        mask = torch.zeros(32, 32)
        mask[2 * row - 3 + order // 7, 2 * column - 3 + order % 7] = 1
        with torch.inference_mode():
            inputs = torch.cat([image, image * (1 - mask), image * mask])
            left.append(network.trace(inputs, "conv1").features["conv1"][:, channel, row, column])
    shares = dict(zip(uf.CHANGES, by_method[method][0].tolist(), strict=True))
    _, removed, kept = (torch.stack(left) / torch.stack(left)[:, :1]).mean(0).tolist()
    assert shares["removed", 0.1] == pytest.approx(removed, rel=1e-3)
    assert shares["kept", 0.1] == pytest.approx(kept, rel=1e-3)


def test_units_that_are_off_do_not_count(inspection):
    """The search says so, or rounding: then the forward pass with removed blocks finds 0 where the search did not."""
    top = inspection.search.top["conv1"]
    with torch.inference_mode():
        inputs = inspection.inputs(inspection.images[inspection.top_images(top, slice(None))[:, 1]])
        features = inspection.network.trace(inputs, "conv1").features["conv1"]
    own = features[torch.arange(64), torch.arange(64)].flatten(1)  # each channel's map of its second image
    channel = int(torch.where(own.amin(1) == 0, top.scores[:, 1], -1).argmax())
    scores, positions = top.scores.clone(), top.positions.clone()
    scores[channel, 1:], positions[channel, 1] = 0, own[channel].argmin()

    def shares(ranks, **changed):
        fields = {"scores": top.scores, "indices": top.indices, "positions": top.positions} | changed
        found = {"conv1": replace(top, **{name: values[:, ranks] for name, values in fields.items()})}
        changed = replace(inspection, search=replace(inspection.search, top=found))
        return uf.channel_shares(changed, SETTINGS, "conv1", [channel], count=2)

    expected = shares([0])[1]
    for changed in ({"scores": scores}, {"positions": positions}):
        assert shares([1], **changed) == ([], {})
        for name, by_channel in shares([0, 1], **changed)[1].items():
            assert by_channel.flatten().tolist() == pytest.approx(expected[name].flatten().tolist(), abs=1e-3), name


def test_json_and_dots():
    """Means, differences and channels; the figure shows a tenth removed and kept."""
    shares = {name: torch.rand(4, len(uf.CHANGES)) for name in uf.METHODS}
    content = uf.stage_content((7, 1, 30, 4), shares)
    for (change, (kind, share)), (name, numbers) in product(enumerate(uf.CHANGES), content.items()):
        values = shares[name][:, change]
        assert numbers[kind][str(share)] == estimate(values)
        assert [numbers["by_channel"][str(n)][kind][str(share)] for n in (7, 1, 30, 4)] == values.tolist()
        assert ("minus_turned" in numbers) == (name in uf.TURNED)
        if name in uf.TURNED:
            difference = (values - shares[uf.TURNED[name]][:, change]).mean().item()
            assert numbers["minus_turned"][kind][str(share)]["mean"] == pytest.approx(difference, abs=1e-6)
    by_class = class_scores(torch.rand(2, len(CLASS_METHODS), 2, 10))
    everything = {"images": [3, 5], "block": 8, "methods": by_class, "channels": {"conv5_x": content}}
    axes = faithfulness_figure(everything, {"conv5_x": "a title"}).get_axes()[-1]
    assert axes.get_title("left") == "a title"
    assert [label.get_text() for label in axes.get_yticklabels()] == list(uf.METHODS) == list(content)
    dots = {(line.get_ydata()[0], line.get_markerfacecolor() == "white"): line.get_xdata()[0]
            for line in axes.get_lines() if len(line.get_xdata()) == 1}  # fmt: skip
    for (row, name), (is_hollow, kind) in product(enumerate(uf.METHODS), ((True, "removed"), (False, "kept"))):
        assert dots[row, is_hollow] == content[name][kind]["0.1"]["mean"]


def test_a_map_has_the_color_of_the_rule_it_is_made_of():
    colors = {name: uf.color_of(name) for name in (*CLASS_METHODS, *uf.METHODS)}
    assert colors["CAM + guided"] == colors["guided x CAM"] == colors["guided, turned"] == colors["guided"]
    assert colors["integrated gradients"] == colors["SmoothGrad"] == colors["random"] != colors["gradient"]
    assert len(set(colors.values())) == 5


def test_a_large_figure_says_what_a_tenth_keeps(inspection):
    channel = int(inspection.search.top["conv5_x"].scores[:, 8].argmax())
    settings = replace(SETTINGS, stages=("conv5_x",), channels=(channel,))
    (_, figure), _, (_, entries) = draw_top9(inspection, settings)
    expected = uf.channel_shares(inspection, settings, "conv5_x", [channel])[1]
    kept = entries[0]["kept"]
    assert kept.keys() == {"guided", uf.SQUARE}
    for name, share in kept.items():
        assert share == pytest.approx(expected[name][0, uf.CHANGES.index(("kept", 0.1))].item(), abs=1e-3)
        assert f"{name} {format_percent(share)}" in figure.get_supxlabel().replace("\n", " ")
