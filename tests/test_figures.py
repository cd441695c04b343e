"""What a figure shows is read back from its arrays, titles and legends."""

import matplotlib
import numpy as np
import pytest
import torch
from conftest import assert_inside, assert_same_pictures
from matplotlib.text import Text
from run_checks import Child

from analysis.channels import ChannelResult, TopImage, reconstruct_top_images
from analysis.crops import crop, crop_boxes
from analysis.inspection import Picture, inspect
from analysis.settings import Settings
from figures import FIGURES, filters, single_image, style, top9
from figures.image_grid import diverging_rgb, diverging_tiles, hstack_images, tile_grid, to_array
from network import STAGES

RANDOM = np.random.RandomState(0)


def result(number=3, rules=("deconvnet", "guided"), count=9, dead=0):
    """A channel's result of random pictures, the last `dead` of which it does not respond to."""
    images = []
    for n in range(count):
        predicted = "American Staffordshire Terrier" if n == 1 else "cat"
        verdict = 0, 0, "cat", predicted, predicted == "cat", None, False, (0, 0, 32, 32), dict.fromkeys(rules, 1.0 + n)
        images.append(TopImage(n + 1, 100 + n, 9.5 - n if n < count - dead else 0.0, *verdict))
    alive = torch.arange(count)[:, None, None, None] < count - dead
    pictures = {rule: torch.from_numpy(RANDOM.randn(count, 3, 32, 32)) * alive for rule in rules}
    patches = torch.from_numpy(RANDOM.rand(count, 3, 32, 32))
    correlation = dict.fromkeys(rules, -0.001) | {"deconvnet": None}
    return ChannelResult("conv5_x", number, tuple(images), patches, pictures, correlation)


def test_figures_do_not_import_pyplot(tmp_path):
    """It keeps every figure in a global list. The script's process has imported visualizer.py: all figures."""
    script = tmp_path / "script.py"
    script.write_text("import sys, figures.gallery; print([name for name in sys.modules if 'pyplot' in name])")
    assert Child(script).finish() == "[]\n"


def test_diverging_rgb():
    assert diverging_rgb(np.array([-2.0, -1, 0, 1, 2, 5]), 2).tolist() == [0, 0.25, 0.5, 0.75, 1, 1]
    assert diverging_rgb(np.zeros(3), 0).tolist() == [0.5] * 3


@pytest.mark.parametrize("color", [None, "green"])
def test_living_filters_come_in_the_order_of_their_norms_each_on_its_own_scale(color):
    weights = RANDOM.randn(64, 3, 7, 7) * RANDOM.uniform(0.5, 1, (64, 3, 1, 1))
    weights[5], weights[9] = 3 * weights[5], 0.002 * weights[9]
    with matplotlib.rc_context({"font.size": 30, "image.origin": "lower"}):  # a reader's settings, not used
        figure = filters.filters_figure(weights, color)
    order = np.argsort(-np.linalg.norm(weights.reshape(64, -1), axis=1))[:63]  # of all colors
    shown = weights if color is None else weights[:, 1:2]
    norms = np.linalg.norm(shown.reshape(64, -1), axis=1)
    page, number = figure.get_axes()[0], order[4]
    assert "63 of 64 filters of 7x7 by norm, 1 dead" in figure.get_suptitle() and order[0] == 5
    assert [text.get_text() for text in page.texts[::2]] == [str(n) for n in order]
    assert [float(text.get_text()) for text in page.texts[1::2]] == pytest.approx(norms[order], abs=0.006)
    bars = np.array([bar[0].get_width() for bar in page.containers])
    assert np.allclose(bars / bars.max(), norms[order] / norms[order].max())
    image, tile = page.get_images()[4], shown[number] / np.abs(weights[number]).max()
    expected = tile[0] if color else 0.5 + 0.5 * tile.transpose(1, 2, 0)
    assert np.allclose(image.get_array(), expected) and (color is None or image.get_clim() == (-1, 1))
    assert page.texts[0].get_fontsize() == 7 and image.origin == "upper"


def test_top9_of_a_channel():
    one = result(dead=2)
    figure = top9.channel_figure(one, "conv5_x, channel 3", style.describe_rule(one, "guided"))
    shown = [axes.get_images()[0].get_array() for axes in figure.get_axes()]
    assert len(shown) == 9 and shown[0].shape == (32, 3 * 32 + 2 * 2, 3)
    assert np.array_equal(shown[4][:, :32], to_array(one.patches)[4])
    expected = diverging_rgb(to_array(one.reconstructions["guided"])[4], one.images[4].scale["guided"])
    assert np.allclose(shown[4][:, -32:], expected) and (shown[8][:, -32:] == 0.5).all()  # dead: flat grey
    captions = [axes.get_title("left") for axes in figure.get_axes()]
    assert captions[:2] == ["1: 9.50, image 100\ncat", "2: 8.50, image 101\ncat, predicted American Staffo…"]
    assert captions[8] == "9: not excited" and "±1.00 to 9.00, correlation 0.00" in figure.get_supxlabel()
    assert [text.get_text() for text in figure.findobj(Text) if text.get_color() == style.ERROR_COLOR] == captions[1:2]


@pytest.mark.parametrize("rule, correlation", [("guided", "0.00"), ("deconvnet", "–")])
def test_the_top9_overview_has_patches_and_pictures_by_one_rule(rule, correlation):
    channels = [result(n, count=8) for n in range(9)]
    figure = top9.overview_figure(channels, rule, "conv5_x")
    one, shown = channels[1], figure.get_axes()[1].get_images()[0].get_array()
    step = 2 * 32 + 5  # tiles twice as large, with gaps of a fourteenth of a tile
    patches, pictures = shown[:, : 3 * step - 5], shown[:, -3 * step + 5 :]
    tile = diverging_rgb(to_array(one.reconstructions[rule])[5], one.images[5].scale[rule])
    for block, expected in ((patches, to_array(one.patches)[5]), (pictures, tile)):
        assert np.allclose(block[step : step + 64 : 2, 2 * step :: 2], expected)
        assert (block[2 * step :, 2 * step :] == 1).all() and (block[step - 5 : step] == 1).all()
    assert figure.get_axes()[1].get_title("left") == f"channel 1: activation 2.50 to 9.50, correlation {correlation}"


def test_hierarchy_shows_what_units_of_the_channels_it_names_see(small_run):
    """Of conv1, 7 pixels: tiles hold the filter and no margin, and patches are the pixels below it."""
    inspection = inspect(small_run / "model.pt", Settings(stages=STAGES), "cpu")
    (_, figure), _ = FIGURES["hierarchy"].draw(inspection, Settings())
    for stage, axes in zip(STAGES, figure.get_axes()[1::4], strict=True):
        channel = int(axes.get_title("left").split()[1].strip(":"))
        (whole,) = reconstruct_top_images(inspection, Settings(rules=("guided",)), stage, [channel])["guided"]
        side, corners = crop_boxes([whole], least=1)
        tiles, energy = crop(whole, side, corners), whole.square().sum((1, 2, 3))
        assert (tiles.square().sum((1, 2, 3)) >= 0.95 * energy).all() and (side <= 7 or stage != "conv1")
        pixels = inspection.images[inspection.top_images(inspection.search.top[stage], channel)]
        pair = tile_grid(to_array(crop(pixels, side, corners) / 255)), tile_grid(diverging_tiles(tiles))
        assert_same_pictures(axes.get_images()[0].get_array(), hstack_images(pair))


THREE_RULES = ("deconvnet", "guided", "gradient")
LONG_NAME = "a_long_file_name_" * 8
PICTURE = Picture("", LONG_NAME, torch.zeros(3, 9, 9, dtype=torch.uint8), "cat", 0)
IMAGE, SIZES = RANDOM.rand(9, 9, 3), RANDOM.randn(512) * 1000
BY_RULE = dict.fromkeys(THREE_RULES, torch.randn(4, 3, 9, 9))
LONG_FIGURES = {
    "channel": lambda: top9.channel_figure(result(511, THREE_RULES), "conv5_x, channel 511", "long " * 30),
    "overview": lambda: top9.overview_figure([result(n) for n in range(3)], "guided", "long " * 40, "long " * 40),
    "maps": lambda: single_image.feature_maps_figure(IMAGE, np.ones((512, 2, 2)), SIZES, "conv5_x", PICTURE, LONG_NAME),
    "parts": lambda: single_image.reconstructions_figure(IMAGE, torch.ones(4, 2, 2), BY_RULE, [509] * 4, "long " * 40),
    "one image": lambda: top9.channel_figure(result(rules=("gradient",), count=1), "x"),
    "one channel": lambda: top9.overview_figure([result(count=1)], "guided", "x"),
}


@pytest.mark.parametrize("draw", LONG_FIGURES.values(), ids=LONG_FIGURES.keys())
def test_no_text_leaves_the_figure(draw):
    assert_inside(draw())
