"""What a figure shows is read back from its arrays, titles and legends."""

import io
import subprocess
import sys

import matplotlib
import numpy as np
import pytest

from figures import drawing, style, training_curves
from figures.image_grid import around_grey, limit_of, mosaic

RANDOM = np.random.RandomState(0)


def drawn(figure):
    """The arrays of all pictures in a figure that are shown."""
    figure.draw_without_rendering()
    return [image.get_array() for axes in figure.get_axes() for image in axes.get_images()]


def channel(number=3, rules=("deconvnet", "guided"), count=9, dead=0):
    entries = [
        {"rank": n + 1, "activation": 0.0 if n >= count - dead else 9.5 - n, "index": 100 + n,
         "label": "cat", "predicted": "dog" if n == 1 else "cat", "correct": n != 1}
        for n in range(count)
    ]  # fmt: skip
    pictures = {rule: RANDOM.randn(count, 32, 32, 3) for rule in rules}
    for each in pictures.values():
        each[count - dead :] = 0
    return {
        "channel": number,
        "patches": RANDOM.rand(count, 32, 32, 3),
        "pictures": pictures,
        "scale": {rule: limit_of(each) for rule, each in pictures.items()},
        "correlation": {rule: 0.25 for rule in rules},
        "entries": entries,
    }


def test_figures_know_neither_torch_nor_pyplot():
    code = "import sys, figures; assert not {'torch', 'matplotlib.pyplot'} & sys.modules.keys(), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_around_grey():
    values = np.array([-2.0, -1, 0, 1, 2, 5])
    assert around_grey(values, 2).tolist() == [0, 0.25, 0.5, 0.75, 1, 1]
    assert around_grey(np.zeros(3), 0).tolist() == [0.5] * 3


def test_mosaic_sets_tiles_in_rows():
    tiles = np.arange(5 * 2 * 3).reshape(5, 2, 3)
    canvas = mosaic(tiles, columns=3, gap=1, fill=-1)
    assert canvas.shape == (5, 11)
    assert np.array_equal(canvas[:2, 4:7], tiles[1]) and np.array_equal(canvas[3:, :3], tiles[3])
    assert (canvas[2] == -1).all() and (canvas[3:, 8:] == -1).all()


class TestTrainingCurves:
    history = [
        {"kind": "train", "epoch": 1, "step": 300, "loss": 2.0, "accuracy": 0.25, "learning_rate": 0.1},
        {"kind": "train", "epoch": 1, "step": 600, "loss": 1.5, "accuracy": 0.5, "learning_rate": 0.1},
        {"kind": "test", "epoch": 1, "step": 700, "loss": 1.4, "accuracy": 0.55},
        {"kind": "train", "epoch": 2, "step": 900, "loss": 1.0, "accuracy": 0.7, "learning_rate": 0.01},
        {"kind": "test", "epoch": 2, "step": 1400, "loss": 1.2, "accuracy": 0.625},
    ]

    def test_the_lines_are_the_history(self):
        losses, accuracies = training_curves.training_curves(self.history).get_axes()
        train, test = (line.get_xydata().tolist() for line in losses.lines[:2])
        assert train == [[300, 2.0], [600, 1.5], [900, 1.0]] and test == [[700, 1.4], [1400, 1.2]]
        assert accuracies.lines[1].get_ydata().tolist() == pytest.approx([55, 62.5])

    def test_last_values_and_steps_of_the_learning_rate(self):
        for axes, labels in zip(
            training_curves.training_curves(self.history).get_axes(),
            (["train 1.000", "test 1.200"], ["train 70.00 %", "test 62.50 %"]),
            strict=True,
        ):
            assert [text.get_text() for text in axes.get_legend().get_texts()] == labels
            assert [line.get_xdata()[0] for line in axes.lines[2:]] == [600]

    def test_the_few_iterations_of_a_runs_end_are_no_point(self):
        end = self.history[3] | {"step": 910, "loss": 9.0}
        again = self.history[3] | {"step": 1210, "loss": 0.5}  # of a run that was joined
        (train, *_), _ = (axes.lines for axes in training_curves.training_curves([*self.history, end, again], 0.1).axes)
        assert train.get_xydata().tolist() == [[300, 2.0], [600, 1.5], [900, 1.0], [1210, 0.5]]
        assert train.get_label() == "train 0.500 (label smoothing 0.1)"

    def test_a_smooth_schedule_has_no_steps(self):
        rates = [0.1 * 0.5**n for n in range(8)]
        history = [self.history[0] | {"step": n, "learning_rate": rate} for n, rate in enumerate(rates)]
        assert len(training_curves.training_curves(history).get_axes()[0].lines) == 1

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_short_histories(self, count):
        training_curves.training_curves(self.history[:count]).draw_without_rendering()


def test_filters_are_drawn_once_each_on_its_own_scale():
    weights = RANDOM.randn(64, 3, 7, 7)
    weights[5] *= 100
    (canvas,) = drawn(drawing.filters(weights))
    assert canvas.shape == (63, 63, 3)
    expected = 0.5 + 0.5 * weights[9].transpose(1, 2, 0) / np.abs(weights[9]).max()
    assert np.allclose(canvas[8:15, 8:15], expected)


def test_a_filter_channel_has_one_scale_around_zero_and_a_colour_bar():
    weights = RANDOM.randn(64, 7, 7)
    figure = drawing.filter_channel(weights, "green", 5.0)
    image = figure.get_axes()[0].get_images()[0]
    assert image.get_clim() == (-5, 5)
    assert np.array_equal(image.get_array()[:7, :7], weights[0])
    assert len(figure.get_axes()) == 2 and "green" in figure.get_axes()[0].get_title()


@pytest.mark.parametrize("count, shape", [(64, (8, 8)), (128, (8, 16)), (256, (16, 16)), (512, (16, 32))])
def test_feature_maps_are_one_picture(count, shape):
    maps = np.maximum(RANDOM.randn(count, 7, 7), 0)
    maps[3] = 0
    figure = drawing.feature_maps(maps, "a stage")
    axes, bar = figure.get_axes()
    (canvas,) = [image.get_array() for image in axes.get_images()]
    assert canvas.shape == (shape[0] * 8 - 1, shape[1] * 8 - 1)
    number = shape[1] + 1  # the second of the second row
    assert np.array_equal(canvas[8:15, 8:15], maps[number])
    assert axes.get_yticklabels()[1].get_text() == str(shape[1])
    assert f"{count} maps of 7x7, 1 without any activation" in figure.get_suptitle()
    assert bar.get_ylabel() == "activation after the ReLU"


def test_feature_maps_that_are_all_zero():
    drawing.feature_maps(np.zeros((64, 2, 2)), "a stage").draw_without_rendering()


def test_input_image_shows_the_ten_most_probable_classes():
    probabilities = RANDOM.dirichlet(np.ones(20))
    names = [f"class {n}" for n in range(20)]
    best = np.argsort(-probabilities)[:10]
    left, right = drawing.input_image(
        RANDOM.rand(32, 32, 3), "a title", names, probabilities, names[best[2]]
    ).get_axes()
    assert [text.get_text() for text in right.get_yticklabels()] == [names[n] for n in best]
    assert [bar.get_width() for bar in right.patches] == pytest.approx((100 * probabilities[best]).tolist())
    colours = [bar.get_facecolor() for bar in right.patches]
    assert colours.count(colours[2]) == 1 and left.get_title() == "a title"


def test_reconstructions_stand_beside_their_maps():
    image, maps = RANDOM.rand(28, 28, 3), np.maximum(RANDOM.randn(9, 7, 7), 0)
    maps[4] = 0
    pictures = {"deconvnet": RANDOM.randn(9, 28, 28, 3), "guided": RANDOM.randn(9, 28, 28, 3)}
    figure = drawing.reconstructions(image, maps, pictures, list(range(10, 19)), "a title")
    shown = drawn(figure)
    assert len(shown) == 10 and np.array_equal(shown[0], image)
    gap = 2
    block = shown[1]
    shades = matplotlib.colormaps["magma"](np.kron(maps[0] / maps[0].max(), np.ones((4, 4))))[:, :, :3]
    assert np.allclose(block[:, :28], shades)
    expected = around_grey(pictures["guided"][0], np.abs(pictures["guided"][0]).max())
    assert np.allclose(block[:, 2 * (28 + gap) :], expected)
    captions = [axes.get_title("left") for axes in figure.get_axes()]
    assert captions[0] == "image" and captions[1] == f"channel 10, peak {maps[0].max():.2f}"
    assert captions[5] == "channel 14, peak 0.00 (dead)"


class TestTop9:
    def test_a_channel_large(self):
        one = channel(dead=2)
        figure = drawing.top9_channel(one, "conv5_x, channel 3")
        shown = drawn(figure)
        assert len(shown) == 9 and shown[0].shape == (32, 3 * 32 + 2 * 2, 3)
        assert np.array_equal(shown[4][:, :32], one["patches"][4])
        expected = around_grey(one["pictures"]["guided"][4], one["scale"]["guided"])
        assert np.allclose(shown[4][:, -32:], expected)
        assert (shown[8][:, -32:] == 0.5).all()  # dead: flat grey
        captions = [axes.get_title("left") for axes in figure.get_axes()]
        assert captions[0] == "1: 9.50, image 100\ncat"
        assert captions[1] == "2: 8.50, image 101\ncat, seen as dog"
        assert captions[8] == "9: dead"
        assert f"deconvnet (±{one['scale']['deconvnet']:.2g}, correlation 0.25)" in figure.get_suptitle()

    def test_the_overview_has_a_block_a_channel(self):
        channels = [channel(n) for n in (3, 17, 40)]
        figure = drawing.top9_overview(channels, "conv5_x")
        shown = drawn(figure)
        assert len(shown) == 3
        side = 3 * 32 + 2
        assert np.array_equal(shown[1][:side, :side], mosaic(channels[1]["patches"], 3))
        assert (
            figure.get_axes()[1]
            .get_title("left")
            .startswith("channel 17: activation 9.50 to 1.50\ncorrelation deconvnet 0.25")
        )

    def test_a_dead_channel_says_so(self):
        assert "channel 5: dead" in drawing.top9_overview([channel(5, dead=9)], "x").get_axes()[0].get_title("left")

    @pytest.mark.parametrize("rules", [("gradient",), ("deconvnet", "guided", "gradient")])
    @pytest.mark.parametrize("count", [1, 4, 16])
    def test_other_numbers_of_rules_and_images(self, rules, count):
        one = channel(rules=rules, count=count)
        assert len(drawn(drawing.top9_channel(one, "x"))) == count
        assert len(drawn(drawing.top9_overview([one], "x"))) == 1


def test_a_figure_does_not_depend_on_the_readers_settings_nor_change_them():
    before = dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 30, "image.origin": "lower"}):
        figure = drawing.filters(RANDOM.randn(64, 3, 7, 7))
    assert figure.get_axes()[0].title.get_fontsize() == 7
    assert figure.get_axes()[0].get_images()[0].origin == "upper"
    assert dict(matplotlib.rcParams) == before


def test_names_with_dollars_are_shown_as_they_are():
    figure = drawing.input_image(RANDOM.rand(8, 8, 3), "cost_$5_^$x.png", ["a$b$", "c"], np.array([0.5, 0.5]), None)
    style.save(figure, io.BytesIO())


def test_long_class_names_stay_within_their_column():
    entry = {"rank": 9, "activation": 12.5, "index": 9999, "label": "Staffordshire Bull Terrier"}
    caption = drawing.tile_caption(entry | {"predicted": "American Staffordshire Terrier", "correct": False})
    assert max(map(len, caption.splitlines())) <= 45 and "Staffordshire Bu…, seen as American Staffor…" in caption


def test_an_undefined_correlation_is_a_dash():
    one = channel() | {"correlation": {"deconvnet": None, "guided": 0.5}}
    assert "guided 0.00" in drawing.top9_overview([channel() | {"correlation": {"guided": -0.001}}], "x").axes[
        0
    ].get_title("left")
    assert "correlation –)" in drawing.top9_channel(one, "x").get_suptitle()
    assert "correlation deconvnet –, guided 0.50" in drawing.top9_overview([one], "x").get_axes()[0].get_title("left")


@pytest.mark.parametrize(
    "figure",
    [
        drawing.top9_channel(
            channel(511, rules=("deconvnet", "guided", "gradient")), "conv5_x, channel 511: " + "long " * 30
        ),
        drawing.top9_overview([channel(n, rules=("deconvnet", "guided", "gradient")) for n in range(3)], "long " * 40),
        drawing.feature_maps(RANDOM.rand(64, 7, 7), "conv1 of " + "a_long_file_name_" * 8 + ".jpg"),
        drawing.feature_maps(RANDOM.rand(64, 32, 32), "conv1 of a picture"),
        drawing.feature_maps(RANDOM.rand(512, 2, 2), "conv5_x of a picture"),
        drawing.filters(RANDOM.randn(64, 3, 7, 7)),
        drawing.filter_channel(RANDOM.randn(64, 7, 7), "red", 3.0),
        training_curves.training_curves(TestTrainingCurves.history),
        drawing.input_image(
            RANDOM.rand(9, 9, 3), "a title", ["a_long_class_name_" * 8] * 2, np.ones(2), "a_long_class"
        ),
        drawing.input_image(RANDOM.rand(9, 9, 3), "a_long_file_name_" * 8, ["cat"], np.ones(1), None),
    ],
    ids=["channel", "overview", "maps", "conv1 maps", "conv5_x maps", "filters", "red", "curves", "classes", "input"],
)
def test_no_text_leaves_the_figure(figure):
    figure.draw_without_rendering()
    used = figure.get_tightbbox()  # of all that is visible, in inches
    width, height = figure.get_size_inches()
    assert min(used.x0, used.y0) >= -0.01 and used.x1 <= width + 0.01 and used.y1 <= height + 0.01
