"""What a figure shows is read back from its arrays, titles and legends."""

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from conftest import assert_inside
from run_checks import Child
from test_training_curves import HISTORY

from analysis.channels import ChannelResult, TopImage
from analysis.crops import mean_correlation
from analysis.inspection import Picture
from figures import comparison, filters, single_image, style, top9, training_curves
from figures.image_grid import diverging_rgb, image_grid, tile_grid, to_array

RANDOM = np.random.RandomState(0)


def drawn(figure):
    """The arrays of all pictures in a figure that are shown."""
    figure.draw_without_rendering()
    return [image.get_array() for axes in figure.get_axes() for image in axes.get_images()]


def result(number=3, rules=("deconvnet", "guided"), count=9, dead=0):
    """A channel's result of random pictures, the last `dead` of which it does not respond to."""
    images = tuple(
        TopImage(
            rank=n + 1,
            index=100 + n,
            activation=0.0 if n >= count - dead else 9.5 - n,
            row=0,
            column=0,
            label="cat",
            predicted=predicted,
            correct=predicted == "cat",
            file=None,
            border=False,
            crop=(0, 0, 32, 32),
            scale=dict.fromkeys(rules, 1.0 + n),
        )
        for n, predicted in enumerate(["cat", "dog", *["cat"] * count][:count])
    )
    pictures = {rule: torch.from_numpy(RANDOM.randn(count, 3, 32, 32)) for rule in rules}
    for each in pictures.values():
        each[count - dead :] = 0
    return ChannelResult(
        "conv5_x",
        number,
        images,
        torch.from_numpy(RANDOM.rand(count, 3, 32, 32)),
        pictures,
        correlation=dict.fromkeys(rules, 0.25),
    )


def test_figures_do_not_import_pyplot(tmp_path):
    """It keeps every figure in a global list, and may ask for a display."""
    script = tmp_path / "script.py"  # run in a process that has imported visualizer.py, and this way all figures
    script.write_text("import sys, figures.gallery; print([name for name in sys.modules if 'pyplot' in name])")
    assert Child(script).finish() == "[]\n"


def test_diverging_rgb():
    values = np.array([-2.0, -1, 0, 1, 2, 5])
    assert diverging_rgb(values, 2).tolist() == [0, 0.25, 0.5, 0.75, 1, 1]
    assert diverging_rgb(np.zeros(3), 0).tolist() == [0.5] * 3


def test_image_grid_sets_tiles_in_rows():
    tiles = np.arange(5 * 2 * 3).reshape(5, 2, 3)
    canvas = image_grid(tiles, columns=3, gap=1, fill=-1)
    assert canvas.shape == (5, 11)
    assert np.array_equal(canvas[:2, 4:7], tiles[1]) and np.array_equal(canvas[3:, :3], tiles[3])
    assert (canvas[2] == -1).all() and (canvas[3:, 8:] == -1).all()


def test_filters_come_in_the_order_of_their_norms_each_on_its_own_scale():
    weights = RANDOM.randn(64, 3, 7, 7)
    weights[5] *= 20
    figure = filters.filters_figure(weights)
    norms = np.sqrt((weights**2).sum((1, 2, 3)))
    order = np.argsort(-norms)
    page, tiles = figure.get_axes()[0], drawn(figure)
    assert order[0] == 5 and len(tiles) == 64
    assert [text.get_text() for text in page.texts[::2]] == [str(n) for n in order]
    assert [text.get_text() for text in page.texts[1::2]] == [f"{norms[n]:.2f}" for n in order]
    weights = weights[order[9]].transpose(1, 2, 0)
    assert np.allclose(tiles[9], 0.5 + 0.5 * weights / np.abs(weights).max())
    bars = [bar[0].get_width() for bar in page.containers]
    assert np.allclose(bars / bars[0], norms[order] / norms[5])


def test_dead_filters_are_counted_and_left_out():
    weights = RANDOM.uniform(0.5, 1, (64, 3, 7, 7))
    weights[9] *= 0.009
    figure = filters.filters_figure(weights)
    assert len(drawn(figure)) == 63 and "63 of 64 filters of 7x7 by norm, 1 dead" in figure.get_suptitle()
    assert "9" not in [text.get_text() for text in figure.get_axes()[0].texts[::2]]


def test_a_color_shows_the_same_filters_in_the_same_order_on_the_scale_of_all_colors():
    weights = RANDOM.randn(64, 3, 7, 7)
    weights[:, 1] *= RANDOM.rand(64, 1, 1)
    pages = [filters.filters_figure(weights, color).get_axes()[0] for color in (None, "green")]
    numbers = [[text.get_text() for text in page.texts[::2]] for page in pages]
    assert numbers[0] == numbers[1]
    image, number = pages[1].get_images()[3], int(numbers[1][3])
    assert image.get_clim() == (-1, 1)
    assert np.allclose(image.get_array(), weights[number, 1] / np.abs(weights[number]).max())


PICTURE = Picture("", "a picture", torch.zeros(3, 9, 9, dtype=torch.uint8), "cat", 0)
IMAGE = RANDOM.rand(9, 9, 3)


@pytest.mark.parametrize("target, count, shown", [("", 64, 63), ("", 128, 48), ("cat", 512, 48)])
def test_feature_maps_show_the_largest_ones_that_are_alive(target, count, shown):
    maps = np.maximum(RANDOM.randn(count, 7, 7), 0)
    maps[3] = 0
    sizes = RANDOM.randn(count) if target else maps.max((1, 2))
    sizes[3] = 99 if target else 0
    figure = single_image.feature_maps_figure(IMAGE, maps, sizes, "a stage", PICTURE, target)
    page, image, curve = figure.get_axes()
    channels = [int(text.get_text()) for text in page.texts[::2]]
    best = [n for n in np.argsort(-sizes, kind="stable") if n != 3][:shown]
    assert channels == best
    assert np.allclose(page.get_images()[5].get_array(), maps[best[5]] / maps[best[5]].max())
    assert page.get_images()[5].get_clim() == (0, 1) and np.array_equal(image.get_images()[0].get_array(), IMAGE)
    assert np.array_equal(curve.get_lines()[0].get_ydata(), np.sort(sizes)[::-1])
    assert f"{shown} of {count} maps of 7x7, 1 are all zero" in figure.get_suptitle()


def test_feature_maps_that_are_all_zero():
    zeros = np.zeros((64, 2, 2))
    single_image.feature_maps_figure(IMAGE, zeros, zeros[:, 0, 0], "a stage", PICTURE).draw_without_rendering()


def test_input_image_shows_the_ten_most_probable_classes():
    probabilities = RANDOM.dirichlet(np.ones(20))
    names = [f"class {n}" for n in range(20)]
    best = np.argsort(-probabilities)[:10]
    picture = replace(PICTURE, label=names[best[2]], choice="It was drawn.")
    figure = single_image.input_figure(IMAGE, picture, names, probabilities)
    _, right = figure.get_axes()
    assert [text.get_text() for text in right.get_yticklabels()] == [names[n] for n in best]
    assert [bar.get_width() for bar in right.patches] == pytest.approx((100 * probabilities[best]).tolist())
    colors = [bar.get_facecolor() for bar in right.patches]
    assert colors.count(colors[2]) == 1
    assert f"a picture: predicted {names[best[0]]}, " in figure.get_suptitle()
    assert "It was drawn." in figure.get_supxlabel()


def test_reconstructions_stand_beside_their_maps():
    image, maps = RANDOM.rand(28, 28, 3), np.maximum(RANDOM.randn(9, 7, 7), 0)
    maps[4] = 0
    pictures = {"deconvnet": RANDOM.randn(9, 28, 28, 3), "guided": RANDOM.randn(9, 28, 28, 3)}
    figure = single_image.reconstructions_figure(image, maps, pictures, list(range(10, 19)), "a title")
    shown = drawn(figure)
    assert len(shown) == 10 and np.array_equal(shown[0], image)
    gap = 2
    block = shown[1]
    shades = matplotlib.colormaps["Greys"](np.kron(maps[0] / maps[0].max(), np.ones((4, 4))))[:, :, :3]
    assert np.allclose(block[:, :28], shades)
    expected = diverging_rgb(pictures["guided"][0], np.abs(pictures["guided"][0]).max())
    assert np.allclose(block[:, 2 * (28 + gap) :], expected)
    captions = [axes.get_title("left") for axes in figure.get_axes()]
    assert captions[0] == "image" and captions[1] == f"channel 10, peak {maps[0].max():.2f}"
    assert captions[5] == "channel 14, peak 0.00 (dead)"
    correlation = style.format_two_digits(mean_correlation(pictures["guided"]))
    assert f"{correlation} (guided)" in figure.get_supxlabel()


class TestTop9:
    def test_a_channel_large(self):
        one = result(dead=2)
        figure = top9.channel_figure(one, "conv5_x, channel 3", style.describe_rule(one, "guided"))
        shown = drawn(figure)
        assert len(shown) == 9 and shown[0].shape == (32, 3 * 32 + 2 * 2, 3)
        assert np.array_equal(shown[4][:, :32], to_array(one.patches)[4])
        expected = diverging_rgb(to_array(one.reconstructions["guided"])[4], one.images[4].scale["guided"])
        assert np.allclose(shown[4][:, -32:], expected)
        assert (shown[8][:, -32:] == 0.5).all()  # dead: flat grey
        captions = [axes.get_title("left") for axes in figure.get_axes()]
        assert captions[0] == "1: 9.50, image 100\ncat"
        assert captions[1] == "2: 8.50, image 101\ncat, predicted dog"
        assert captions[8] == "9: dead"
        assert "±1 to 9, correlation 0.25" in figure.get_supxlabel()

    @pytest.mark.parametrize("rule", ["guided", "deconvnet"])
    def test_the_overview_has_patches_and_pictures_by_one_rule(self, rule):
        channels = [result(n) for n in range(9)]
        figure = top9.overview_figure(channels, rule, "conv5_x")
        shown = drawn(figure)
        assert len(shown) == 9
        side = 3 * 64 + 2 * 5  # tiles twice as large, with gaps of a fourteenth of a tile
        one = channels[1]
        assert np.array_equal(shown[1][:side, :side], tile_grid(to_array(one.patches), 3))
        tile = diverging_rgb(to_array(one.reconstructions[rule])[0], one.images[0].scale[rule])
        assert np.allclose(shown[1][:64:2, -side : 64 - side : 2], tile) and (shown[1][:64, 64:69] == 1).all()
        title = figure.get_axes()[1].get_title("left")
        assert title == "channel 1: activation 1.50 to 9.50, correlation 0.25"

    @pytest.mark.parametrize("count", [1, 4, 16])
    def test_other_numbers_of_images(self, count):
        one = result(rules=("gradient",), count=count)
        assert len(drawn(top9.channel_figure(one, "x"))) == count
        assert len(drawn(top9.overview_figure([one], "gradient", "x"))) == 1


def test_a_figure_does_not_depend_on_the_readers_settings_nor_change_them():
    with matplotlib.rc_context({"font.size": 30, "image.origin": "lower"}):
        before = dict(matplotlib.rcParams)
        figure = filters.filters_figure(RANDOM.randn(64, 3, 7, 7))
        assert dict(matplotlib.rcParams) == before
    assert figure.get_axes()[0].texts[0].get_fontsize() == 7
    assert figure.get_axes()[0].get_images()[0].origin == "upper"


def test_long_class_names_stay_within_their_column():
    names = "Staffordshire Bull Terrier", "American Staffordshire Terrier"
    caption = top9.tile_caption(TopImage(9, 9999, 12.5, 0, 0, *names, False, None, True, (0, 0, 9, 9), {}))
    assert max(map(len, caption.splitlines())) <= 45 and "Staffordshire B…, predicted American Staffo…" in caption


def test_an_undefined_correlation_is_a_dash():
    one = replace(result(), correlation={"deconvnet": None, "guided": -0.001})
    assert style.describe_rule(one, "deconvnet").endswith("correlation –")
    assert style.describe_rule(one, "guided").endswith("correlation 0.00")


THREE_RULES = ("deconvnet", "guided", "gradient")
LONG_NAME = "a_long_file_name_" * 8
FIGURES = {
    "channel": lambda: top9.channel_figure(result(511, THREE_RULES), "conv5_x, channel 511", "long " * 30),
    "overview": lambda: top9.overview_figure([result(n) for n in range(3)], "guided", "long " * 40, "long " * 40),
    "maps": lambda: single_image.feature_maps_figure(
        IMAGE, RANDOM.rand(64, 7, 7), RANDOM.rand(64) * 1000, "conv1", replace(PICTURE, title=LONG_NAME)
    ),
    "conv5_x maps": lambda: single_image.feature_maps_figure(
        IMAGE, RANDOM.rand(512, 2, 2), RANDOM.randn(512), "conv5_x", PICTURE, LONG_NAME
    ),
    "filters": lambda: filters.filters_figure(RANDOM.randn(64, 3, 7, 7)),
    "red": lambda: filters.filters_figure(RANDOM.randn(64, 3, 7, 7), "red"),
    "curves": lambda: training_curves.training_curves(HISTORY),
    "classes": lambda: single_image.input_figure(IMAGE, PICTURE, [LONG_NAME] * 2, np.ones(2)),
    "input": lambda: single_image.input_figure(IMAGE, replace(PICTURE, title=LONG_NAME), ["cat"], np.ones(1)),
    "comparison": lambda: comparison.comparison_figure(
        RANDOM.rand(2, 32, 32, 3),
        {name: torch.randn(2, 3, 32, 32) for name in THREE_RULES},
        ["channel 500\nimage 9999\nactivation 123.45"] * 2,
        {name: ["±1.2e-05, norm 0.25"] * 2 for name in THREE_RULES},
        ["conv5_x, deconvnet: " + "long " * 20, "below: " + "long " * 30],
    ),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES.keys())
def test_no_text_leaves_the_figure(draw):
    assert_inside(draw())
