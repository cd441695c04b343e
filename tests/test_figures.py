"""What a figure shows is read back from its arrays, titles and legends."""

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from children import Child
from conftest import assert_inside
from test_training_curves import HISTORY

from analysis.channels import ChannelResult, TopImage
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


def test_filters_are_drawn_once_each_on_its_own_scale():
    weights = RANDOM.randn(64, 3, 7, 7)
    weights[5] *= 20
    (canvas,) = drawn(filters.filters_figure(weights))
    assert canvas.shape == (63, 63, 3)
    expected = 0.5 + 0.5 * weights[9].transpose(1, 2, 0) / np.abs(weights[9]).max()
    assert np.allclose(canvas[8:15, 8:15], expected)


def test_filters_without_weight_are_left_grey_instead_of_their_noise():
    weights = RANDOM.uniform(0.5, 1, (64, 3, 7, 7))
    weights[9] *= 0.009
    figure = filters.filters_figure(weights)
    (canvas,) = drawn(figure)
    assert (canvas[8:15, 8:15] == 0.5).all() and (canvas[8:15, 16:23] > 0.5).all()
    assert "\n1 have less than 1 % of the largest weight" in figure.get_axes()[0].get_title()


def test_a_filter_channel_has_one_scale_around_zero_and_a_color_bar():
    weights = RANDOM.randn(64, 7, 7)
    figure = filters.filter_channel_figure(weights, "green", 5.0)
    image = figure.get_axes()[0].get_images()[0]
    assert image.get_clim() == (-5, 5)
    assert np.array_equal(image.get_array()[:7, :7], weights[0])
    assert len(figure.get_axes()) == 2 and "green" in figure.get_axes()[0].get_title()


@pytest.mark.parametrize("count, shape", [(64, (8, 8)), (128, (8, 16)), (512, (16, 32))])
def test_feature_maps_are_one_picture(count, shape):
    maps = np.maximum(RANDOM.randn(count, 7, 7), 0)
    maps[3] = 0
    figure = single_image.feature_maps_figure(maps, "a stage")
    axes, bar = figure.get_axes()
    (canvas,) = [image.get_array() for image in axes.get_images()]
    assert canvas.shape == (shape[0] * 8 - 1, shape[1] * 8 - 1)
    number = shape[1] + 1  # the second of the second row
    assert np.array_equal(canvas[8:15, 8:15], maps[number])
    assert axes.get_yticklabels()[1].get_text() == str(shape[1])
    assert f"{count} maps of 7x7, 1 of them all zero" in figure.get_suptitle()
    assert bar.get_ylabel() == "activation after the ReLU"


def test_feature_maps_that_are_all_zero():
    single_image.feature_maps_figure(np.zeros((64, 2, 2)), "a stage").draw_without_rendering()


def test_input_image_shows_the_ten_most_probable_classes():
    probabilities = RANDOM.dirichlet(np.ones(20))
    names = [f"class {n}" for n in range(20)]
    best = np.argsort(-probabilities)[:10]
    left, right = single_image.input_figure(
        RANDOM.rand(32, 32, 3), "a title", names, probabilities, names[best[2]]
    ).get_axes()
    assert [text.get_text() for text in right.get_yticklabels()] == [names[n] for n in best]
    assert [bar.get_width() for bar in right.patches] == pytest.approx((100 * probabilities[best]).tolist())
    colors = [bar.get_facecolor() for bar in right.patches]
    assert colors.count(colors[2]) == 1 and left.get_title() == "a title"


def test_reconstructions_stand_beside_their_maps():
    image, maps = RANDOM.rand(28, 28, 3), np.maximum(RANDOM.randn(9, 7, 7), 0)
    maps[4] = 0
    pictures = {"deconvnet": RANDOM.randn(9, 28, 28, 3), "guided": RANDOM.randn(9, 28, 28, 3)}
    figure = single_image.reconstructions_figure(image, maps, pictures, list(range(10, 19)), "a title")
    shown = drawn(figure)
    assert len(shown) == 10 and np.array_equal(shown[0], image)
    gap = 2
    block = shown[1]
    shades = matplotlib.colormaps["magma"](np.kron(maps[0] / maps[0].max(), np.ones((4, 4))))[:, :, :3]
    assert np.allclose(block[:, :28], shades)
    expected = diverging_rgb(pictures["guided"][0], np.abs(pictures["guided"][0]).max())
    assert np.allclose(block[:, 2 * (28 + gap) :], expected)
    captions = [axes.get_title("left") for axes in figure.get_axes()]
    assert captions[0] == "image" and captions[1] == f"channel 10, peak {maps[0].max():.2f}"
    assert captions[5] == "channel 14, peak 0.00 (dead)"


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
    assert figure.get_axes()[0].title.get_fontsize() == 7
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
    "maps": lambda: single_image.feature_maps_figure(RANDOM.rand(64, 7, 7), f"conv1 of {LONG_NAME}.jpg"),
    "conv5_x maps": lambda: single_image.feature_maps_figure(RANDOM.rand(512, 2, 2), "conv5_x of a picture"),
    "filters": lambda: filters.filters_figure(RANDOM.randn(64, 3, 7, 7)),
    "red": lambda: filters.filter_channel_figure(RANDOM.randn(64, 7, 7), "red", 3.0),
    "curves": lambda: training_curves.training_curves(HISTORY),
    "classes": lambda: single_image.input_figure(
        RANDOM.rand(9, 9, 3), "a title", ["a_long_class_name_" * 8] * 2, np.ones(2), "a_long_class"
    ),
    "input": lambda: single_image.input_figure(RANDOM.rand(9, 9, 3), LONG_NAME, ["cat"], np.ones(1), None),
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
