"""The figures of one image, against the network alone."""

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from conftest import assert_same_pictures, ends
from PIL import Image

import visualizer
from analysis.crops import mean_correlation
from analysis.inspection import Picture, add_pictures, inspect, median_image
from analysis.settings import Settings
from figures import FIGURES, single_image
from figures.image_grid import to_array
from network import ResNet18
from reverse_network import ReverseResNet18, isolate

SETTINGS = Settings(stages=("conv5_x", "conv2_x"))
RANDOM = np.random.RandomState(0)
PICTURE = Picture("", "a picture", torch.zeros(3, 9, 9, dtype=torch.uint8), "cat", 0)


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", SETTINGS, "cpu")


@pytest.fixture
def trace(inspection):
    with torch.inference_mode():
        return inspection.network.trace(inspection.preprocess(inspection.pictures[0].image[None]))


def test_the_prediction_shows_the_ten_most_probable_of_twenty_classes(inspection):
    network, names = ResNet18(20).eval(), [f"class {n}" for n in range(20)]
    with torch.inference_mode():
        probabilities = network(inspection.inputs(inspection.pictures[0].image[None])).softmax(1)[0]
    percents, best = (values.tolist() for values in (100 * probabilities).sort(descending=True))
    picture = replace(inspection.pictures[0], label=names[best[2]], choice="It was drawn.")
    how = {"network": network, "metadata": replace(inspection.metadata, classes=names), "pictures": (picture,)}
    ((_, figure),) = FIGURES["input"].draw(replace(inspection, **how), SETTINGS)
    _, bars = figure.get_axes()
    assert [text.get_text() for text in bars.get_yticklabels()] == [names[n] for n in best[:10]]
    assert [bar.get_width() for bar in bars.patches] == pytest.approx(percents[:10], rel=1e-4)
    colors = [bar.get_facecolor() for bar in bars.patches]
    assert colors.count(colors[2]) == 1
    assert f"predicted {names[best[0]]}, " in figure.get_suptitle() and "It was drawn." in figure.get_supxlabel()


def test_feature_maps(inspection, trace):
    contributions, number = single_image.contributions(inspection, trace.features["conv5_x"][0])
    with torch.inference_mode():
        logits = inspection.network.classify(trace.features["conv5_x"])[0]
    total = contributions.sum() + inspection.network.fc.bias[number]
    assert number == logits.argmax() and total.item() == pytest.approx(logits[number].item(), rel=1e-5)
    for path, figure in FIGURES["feature_maps"].draw(inspection, SETTINGS):
        maps = trace.features[path.name.removesuffix("_feature_maps")][0]
        peaks, page = maps.amax((1, 2)), figure.get_axes()[0]
        sizes, most = (contributions, 48) if len(maps) == 512 else (peaks, 64)
        channels, best = [int(text.get_text()) for text in page.texts[::2]], sizes[peaks > 0].sort(descending=True)
        assert torch.allclose(sizes[channels], best.values[:most], rtol=1e-4, atol=1e-5)
        expected = maps[channels[1]] / peaks[channels[1]]
        assert np.allclose(page.get_images()[1].get_array(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("target, count, shown", [("", 64, 63), ("", 128, 48), ("cat", 512, 48)])
def test_feature_maps_show_the_largest_ones_that_are_alive(target, count, shown):
    maps, image = np.maximum(RANDOM.randn(count, 7, 7), 0), RANDOM.rand(9, 9, 3)
    maps[3] = 0
    sizes = RANDOM.randn(count) if target else maps.max((1, 2))
    sizes[3] = 99 if target else 0
    figure = single_image.feature_maps_figure(image, maps, sizes, "a stage", PICTURE, target)
    page, below, curve = figure.get_axes()
    best = [n for n in np.argsort(-sizes, kind="stable") if n != 3][:shown]
    assert [int(text.get_text()) for text in page.texts[::2]] == best
    assert page.get_images()[5].get_clim() == (0, 1) and np.array_equal(below.get_images()[0].get_array(), image)
    assert np.array_equal(curve.get_lines()[0].get_ydata(), np.sort(sizes)[::-1])
    assert f"{shown} of {count} maps of 7x7, all zero: 1" in figure.get_suptitle()


def test_maps_that_are_all_zero_can_be_drawn():
    zeros, image = torch.zeros(64, 2, 2), np.ones((4, 4, 3))
    single_image.feature_maps_figure(image, zeros.numpy(), zeros[:, 0, 0].numpy(), "", PICTURE).draw_without_rendering()
    figure = single_image.reconstructions_figure(image, zeros[:1], {"guided": torch.zeros(1, 3, 4, 4)}, [7], "a title")
    assert figure.get_axes()[1].get_title("left") == "channel 7, peak 0.00 (off)"


def test_reconstructions(inspection, trace):
    for path, figure in FIGURES["reconstructions"].draw(inspection, SETTINGS):
        stage = path.name.removesuffix("_reconstructions")
        maps = trace.features[stage][0]
        image, *panels = figure.get_axes()
        channels = [int(axes.get_title("left").split()[1].strip(",")) for axes in panels]
        peaks, expected = maps.amax((1, 2)), {}
        assert torch.allclose(peaks[channels], peaks.sort(descending=True).values[:9], rtol=1e-4, atol=1e-5)
        assert float(panels[3].get_title("left").split()[-1]) == pytest.approx(peaks[channels[3]].item(), abs=0.006)
        resized = inspection.resized(inspection.pictures[0].image[None])
        assert np.array_equal(image.get_images()[0].get_array(), to_array(resized)[0])
        with torch.inference_mode():
            for rule in ("deconvnet", "guided"):
                mirror = ReverseResNet18(inspection.network, rule)
                pictures = [mirror(isolate(trace.features[stage], channel), stage, trace)[0] for channel in channels]
                expected[rule] = to_array(torch.stack(pictures))
                caption = figure.get_supxlabel().replace("\N{MINUS SIGN}", "-")
                correlation = float(caption.split(f" ({rule})")[0].split()[-1])
                assert correlation == pytest.approx(mean_correlation(expected[rule]), abs=0.011)
        for n, (axes, channel) in enumerate(zip(panels, channels, strict=True)):
            blocks = axes.get_images()[0].get_array()
            shades = np.kron(maps[channel] / peaks[channel], np.ones([32 // maps.shape[1]] * 2))
            assert_same_pictures(blocks[:, :32], matplotlib.colormaps["Greys"](shades)[:, :, :3])
            for left, rule in ((34, "deconvnet"), (68, "guided")):
                limit = max(np.quantile(np.abs(expected[rule][n]).max(-1), 0.99), 1e-30)
                assert_same_pictures(2 * blocks[:, left : left + 32] - 1, np.clip(expected[rule][n] / limit, -1, 1))


@pytest.mark.parametrize(
    "first_class, changes, index, words",
    [
        (0, {}, 0, "of 9 test images of a class, 7 are classified right"),  # 1 2 3 5 6 7 9
        (0, {"searched": torch.tensor([2, 4, 5, 7, 8, 10])}, 4, "of 5 test images of a class, 3 are"),
        (2, {}, 0, "of 9 test images"),  # the next class: of class 2 there are none, of class 1 all are wrong
        (0, {"labels": torch.full((12,), 2)}, 0, "none of those tried is classified right"),
        (0, {"label_names": ("a", "b", "c")}, 0, "whose classes are not the network's"),
    ],
)
def test_the_image_shown_is_the_median_of_those_that_are_right(inspection, first_class, changes, index, words):
    """Nine images of one class and three of another; the network predicts the first, but for two of them."""
    logits = torch.zeros(12, 3)
    logits[:9, 0] = torch.tensor([5.0, 1, 9, 3, 7, -8, 2, 6, -9])
    images = torch.arange(12).reshape(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    fake = {"network": lambda inputs: logits[inputs[:, 0, 0, 0].long()], "preprocess": lambda images: images}
    fake |= {"images": images, "labels": torch.tensor([0] * 9 + [1] * 3)} | changes
    orders = ((seed, torch.randperm(3, generator=torch.Generator().manual_seed(seed))) for seed in range(99))
    seed = next(seed for seed, order in orders if order[0] == first_class)
    chosen, sentence = median_image(replace(inspection, **fake), Settings(seed=seed, batch_size=4))
    assert chosen == index and words in sentence


def test_the_image_is_chosen_by_number_or_ones_own(inspection, small_run, capsys):
    (picture,) = add_pictures(inspection, Settings(image=7)).pictures
    assert torch.equal(picture.image, inspection.images[7]) and picture.folder == "" and picture.choice == ""
    flags = ["--ckpt", small_run / "model.pt", "--figures", "input", "--device", "cpu", "--image"]
    ends(capsys, visualizer.main, [*flags, 12], 2, "--image 12", "0 to 11")
    ends(capsys, visualizer.main, [*flags, 1, "--images", "a.png"], 2, "pass one of them")
    file = next((small_run.parent / "pictures" / "test" / "ring").iterdir())
    (picture,) = add_pictures(inspection, Settings(), [str(file)]).pictures
    assert np.array_equal(to_array(picture.image), np.asarray(Image.open(file))) and picture.label is None
