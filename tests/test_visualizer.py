"""The script's flags and files; and what single figures show, against the network alone."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_folder
from PIL import Image

import visualizer
from analysis.activations import SearchResult, TopActivations
from analysis.channels import chosen_channels, inspect_channel, strongest_units
from analysis.inspection import add_pictures, add_preprocessing, add_search, add_test_images, inspect, load_inspection
from analysis.settings import Settings
from dataset import sources
from dataset.preprocess import Preprocess
from figures import FIGURES, top9
from figures.entry import NotDrawn
from figures.image_grid import to_array
from network import STAGES, ResNet18
from reverse_network import ReverseResNet18, isolate
from runtime import checkpoint

FIXED_NAMES = {
    "training_curves",
    "conv1_filters",
    "conv1_filters_red",
    "conv1_filters_green",
    "conv1_filters_blue",
    "input",
    "conv1_feature_maps",
    "conv5_x_feature_maps",
    "conv1_reconstructions",
    "conv5_x_reconstructions",
    "conv1_top9",
    "conv5_x_top9",
    "rules",
    "branches",
    "unpooling",
    "sanity",
    "confusion_matrix",
    "mistakes",
}
SETTINGS = Settings()


def visualize(run, out, *flags):
    visualizer.main(["--ckpt", str(run / "model.pt"), "--out", str(out), "--device", "cpu", "--dpi", "50", *flags])


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", SETTINGS, "cpu")


@pytest.fixture(scope="module")
def plots(small_run, tmp_path_factory):
    """All figures of the small run, drawn with the defaults but for fewer dots per inch."""
    out = tmp_path_factory.mktemp("plots")
    visualize(small_run, out, "--dpi", "150")
    return out


class TestDefaults:
    def test_every_figure_is_there_under_its_name(self, plots):
        names = {path.stem for path in plots.glob("*.png")}
        channels = {name for name in names if "_channel_" in name}
        summary = json.loads((plots / "summary.json").read_text())
        assert names - channels == FIXED_NAMES - ({"mistakes"} if summary["accuracy"] == 1 else set())
        assert {path.suffix for path in plots.iterdir()} == {".png", ".json"}
        for stage in ("conv1", "conv5_x"):
            expected = {entry["channel"] for entry in entries_of(plots) if entry["stage"] == stage}
            assert {name for name in channels if name.startswith(stage)} == {
                f"{stage}_top9_channel_{channel}" for channel in expected
            }

    def test_pictures_are_neither_blank_nor_narrower_than_a_column(self, plots):
        for path in plots.glob("*.png"):
            with Image.open(path) as picture:
                assert picture.format == "PNG" and picture.info["dpi"] == pytest.approx((150, 150), abs=0.1)
                array = np.asarray(picture.convert("RGB"))
            assert array.shape[1] >= 3.3 * 150 and array.std() > 5, path.name
        assert visualizer.parse_args([]).dpi == 300

    def test_top9_json_is_what_a_brute_force_search_finds(self, plots, small_run):
        entries = entries_of(plots)
        network, info = checkpoint.load_network(small_run / "model.pt")
        folder = small_run.parent / "pictures"
        images, labels, classes = sources.load(str(folder), "test")
        files = sources.list_files(folder, "test")
        with torch.inference_mode():
            inputs = Preprocess(32, info.mean, info.std)(images)
            trace, predicted = network.trace(inputs), network(inputs).argmax(1)
        for stage in ("conv1", "conv5_x"):
            features = trace.features[stage]
            peaks = features.amax((2, 3))
            mine = [entry for entry in entries if entry["stage"] == stage]
            channels = [entry["channel"] for entry in mine[::9]]
            highest = peaks.amax(0)[channels]
            assert torch.equal(highest, highest.sort(descending=True).values)
            assert torch.allclose(highest, peaks.amax(0).sort(descending=True).values[: len(channels)])
            for channel in channels:
                nine = [entry for entry in mine if entry["channel"] == channel]
                assert [entry["rank"] for entry in nine] == list(range(1, 10))
                expected = peaks[:, channel].sort(descending=True, stable=True).values
                for entry, score in zip(nine, expected, strict=False):
                    index = entry["index"]
                    unit = features[index, channel, entry["row"], entry["column"]]
                    assert entry["activation"] == pytest.approx(score.item(), rel=1e-4, abs=1e-6)
                    assert unit.item() == pytest.approx(score.item(), rel=1e-4, abs=1e-6)
                    assert entry["label"] == classes[labels[index]]
                    assert entry["predicted"] == classes[predicted[index]]
                    assert entry["correct"] == (predicted[index] == labels[index]).item()
                    assert entry["file"] == str(files[index])
                    assert entry["scale"].keys() == entry["correlation"].keys() == {"deconvnet", "guided"}

    def test_the_same_bytes_again(self, small_run, tmp_path):
        flags = "--figures sanity top9 confusion_matrix feature_maps --stages conv3_x --channels 3 17 40".split()
        for name in ("a", "b"):
            visualize(small_run, tmp_path / name, *flags)
        paths = list((tmp_path / "a").iterdir())
        assert len(paths) >= 4
        for path in paths:
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def entries_of(folder):
    return json.loads((folder / "top9.json").read_text())


def test_the_reconstructions_shown_are_the_mirrors(inspection):
    result = inspect_channel(inspection, SETTINGS, "conv5_x", 7)
    images = inspection.images[[image.index for image in result.images]]
    with torch.inference_mode():
        trace = inspection.network.trace(inspection.preprocess(images))
        signal = isolate(trace.features["conv5_x"], 7, "peak")
        for rule in ("deconvnet", "guided"):
            expected = ReverseResNet18(inspection.network, rule)(signal, "conv5_x", trace)
            shown = result.reconstructions[rule]
            assert shown.shape == (9, 3, 32, 32)  # the whole image: it is small
            assert (shown - expected).abs().max() <= 1e-5 * expected.abs().max()
            assert result.scale[rule] == pytest.approx(expected.abs().max().item(), rel=1e-5)
    assert torch.allclose(result.patches, images / 255, atol=1e-6)


class TestOnePicture:
    """The figures of one image, against the network alone."""

    settings = Settings(stages=("conv5_x", "conv2_x"))

    @pytest.fixture
    def trace(self, inspection):
        with torch.inference_mode():
            return inspection.network.trace(inspection.preprocess(inspection.images[:1]))

    def test_the_prediction(self, inspection, trace):
        ((_, figure),) = FIGURES["input"].draw(inspection, self.settings)
        with torch.inference_mode():
            probabilities = inspection.network.classify(trace.features["conv5_x"]).softmax(1)[0]
        bars = figure.get_axes()[1]
        widths = {
            text.get_text(): bar.get_width() for text, bar in zip(bars.get_yticklabels(), bars.patches, strict=True)
        }
        expected = dict(zip(inspection.metadata.classes, (100 * probabilities).tolist(), strict=True))
        assert widths == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert list(widths.values()) == sorted(widths.values(), reverse=True)

    def test_feature_maps(self, inspection, trace):
        drawn = {path.name: figure for path, figure in FIGURES["feature_maps"].draw(inspection, self.settings)}
        canvas = drawn["conv5_x_feature_maps"].get_axes()[0].get_images()[0].get_array()
        expected = trace.features["conv5_x"][0, :, 0, 0].reshape(16, 32)  # of 32x32 pixels one unit a map is left
        assert np.allclose(canvas[::8, ::8], expected, rtol=1e-4, atol=1e-5)
        canvas = drawn["conv2_x_feature_maps"].get_axes()[0].get_images()[0].get_array()
        assert np.allclose(canvas[9:17, 18:26], trace.features["conv2_x"][0, 10], rtol=1e-4, atol=1e-5)

    def test_reconstructions(self, inspection, trace):
        for path, figure in FIGURES["reconstructions"].draw(inspection, self.settings):
            stage = path.name.removesuffix("_reconstructions")
            maps = trace.features[stage][0]
            panels = [axes for axes in figure.get_axes() if axes.get_title("left").startswith("channel")]
            channels = [int(axes.get_title("left").split()[1].strip(",")) for axes in panels]
            assert torch.allclose(maps.amax((1, 2))[channels], maps.amax((1, 2)).sort(descending=True).values[:9])
            for axes, channel in zip(panels, channels, strict=True):
                picture = axes.get_images()[0].get_array()
                for place, rule in ((1, "deconvnet"), (2, "guided")):
                    with torch.inference_mode():
                        signal = isolate(trace.features[stage], channel)
                        expected = ReverseResNet18(inspection.network, rule)(signal, stage, trace)[0].permute(1, 2, 0)
                    tile = 2 * picture[:, place * 34 : place * 34 + 32] - 1
                    limit = expected.abs().max().clamp(min=1e-30)
                    assert np.allclose(tile, expected / limit, atol=1e-4), (stage, channel, rule)


class TestRegistry:
    @pytest.mark.parametrize("name, entry", FIGURES.items())
    def test_every_entry_says_what_it_is_and_is_drawn(self, inspection, name, entry):
        assert entry.title and entry.reading.endswith(".") and entry.needs in ("checkpoint", "pictures", "search")
        wrong = (inspection.search.logits.argmax(1) + 1) % 3  # so that there are mistakes to draw
        inspection = replace(inspection, labels=wrong)
        if name == "evolution":  # the run kept no snapshots
            with pytest.raises(NotDrawn, match="--snapshots"):
                list(entry.draw(inspection, SETTINGS))
        else:
            figures = [(path, content) for path, content in entry.draw(inspection, SETTINGS) if path.name != "top9"]
            assert figures and all(figure.get_axes() for _, figure in figures)

    def test_the_documentation_lists_every_figure(self):
        page = Path(__file__).parent.parent / "docs" / "figures.md"
        if not page.exists():
            pytest.skip("needs docs/figures.md")
        text = page.read_text()
        assert [name for name in FIGURES if f"`{name}`" not in text] == []

    def test_help_lists_every_figure(self, capsys):
        with pytest.raises(SystemExit):
            visualizer.parse_args(["--help"])
        text = capsys.readouterr().out
        assert all(name in text and entry.title in text for name, entry in FIGURES.items())


class TestFlags:
    @pytest.mark.parametrize(
        "name, files",
        [
            ("filters", {"conv1_filters.png", *(f"conv1_filters_{c}.png" for c in ("red", "green", "blue"))}),
            ("evolution", {"summary.json"}),  # the run kept no snapshots
            ("feature_maps", {"conv1_feature_maps.png", "conv5_x_feature_maps.png"}),
            ("confusion_matrix", {"confusion_matrix.png", "summary.json"}),
        ],
    )
    def test_one_figure_alone(self, small_run, tmp_path, name, files):
        visualize(small_run, tmp_path, "--figures", name)
        assert {path.name for path in tmp_path.iterdir()} == files

    def test_stages_channels_top_rules_and_units(self, small_run, tmp_path, inspection):
        settings = Settings(stages=("conv3_x",))
        a, b = chosen_channels(settings, add_search(inspection, settings).search.top["conv3_x"])[:2]
        flags = f"--figures top9 --stages conv3_x --channels {b} {a} --top 4 --rules gradient --unpool overwrite"
        visualize(small_run, tmp_path, *flags.split(), "--units", "map", "--batch-size", "5")
        names = {path.name for path in tmp_path.iterdir()}
        pictures = {f"conv3_x_{name}.png" for name in ("top9", f"top9_channel_{a}", f"top9_channel_{b}")}
        assert names == pictures | {"top9.json", "summary.json"}
        entries = entries_of(tmp_path)
        assert [(entry["channel"], entry["rank"]) for entry in entries] == [
            (c, n) for c in (b, a) for n in (1, 2, 3, 4)
        ]
        assert entries[0]["scale"].keys() == {"gradient"}
        settings = json.loads((tmp_path / "summary.json").read_text())["settings"]
        assert (settings["channels"], settings["units"], settings["unpool"]) == ([b, a], "map", "overwrite")

    def test_dots_per_inch(self, small_run, tmp_path):
        visualize(small_run, tmp_path, "--dpi", "200", "--figures", "training_curves")
        with Image.open(tmp_path / "training_curves.png") as picture:
            assert picture.width == 7 * 200 and min(picture.info["dpi"]) == pytest.approx(200, abs=0.1)

    def test_pdf_for_latex(self, small_run, tmp_path):
        for out in (tmp_path / "a", tmp_path / "b"):
            visualize(small_run, out, "--format", "pdf", "--figures", "filters", "confusion_matrix")
        files = sorted(path.name for path in (tmp_path / "a").glob("*.pdf"))
        assert files == ["confusion_matrix.pdf", *(f"conv1_filters{c}.pdf" for c in ("", "_blue", "_green", "_red"))]
        for name in files:
            content = (tmp_path / "a" / name).read_bytes()
            assert content.startswith(b"%PDF-") and content == (tmp_path / "b" / name).read_bytes()

    def test_nothing_twice(self, small_run, tmp_path):
        flags = "--figures top9 top9 --stages conv1 conv1 --channels 3 3 --rules guided guided"
        args = visualizer.parse_args(flags.split())
        assert visualizer.settings_from(args) == Settings(stages=("conv1",), channels=(3,), rules=("guided",))
        args = visualizer.parse_args(["--ckpt", str(small_run / "model.pt"), "--device", "cpu", *flags.split()])
        assert visualizer.load_what_is_needed(args, SETTINGS)[1] == ["top9"]

    def test_defaults(self):
        assert visualizer.settings_from(visualizer.parse_args([])) == Settings()
        assert visualizer.settings_from(visualizer.parse_args("--channels 3 all".split())).channels == "all"

    def test_every_stage(self, small_run, tmp_path):
        visualize(small_run, tmp_path, "--figures", "feature_maps", "reconstructions", "--stages", *STAGES)
        assert len(list(tmp_path.glob("*_feature_maps.png"))) == len(list(tmp_path.glob("*_reconstructions.png"))) == 5

    def test_filters_of_a_plain_state_dict_need_no_data(self, small_run, tmp_path):
        torch.save(checkpoint.load(small_run / "model.pt")["model"], tmp_path / "model.pt")
        visualize(tmp_path, tmp_path / "plots", "--figures", "filters", "--root", str(tmp_path / "nothing"))
        assert len(list((tmp_path / "plots").iterdir())) == 4

    def test_reconstructions_that_are_not_finite(self, small_run, tmp_path, capsys):
        state = checkpoint.load(small_run / "model.pt")
        state["model"]["bn1.running_var"][:] = 0
        state["model"]["bn1.weight"] *= 1e36  # the signal on its way back becomes too large, after the search's maps
        torch.save(state, tmp_path / "model.pt")
        for flags in (["--figures", "top9"], ["--figures", "reconstructions"]):
            with pytest.raises(SystemExit) as end:
                visualize(tmp_path, tmp_path / "plots", *flags)
            assert end.value.code == 1 and "are not finite" in capsys.readouterr().err

    def test_ones_own_pictures(self, small_run, tmp_path):
        random = np.random.RandomState(0)
        for name, size in (
            ("cat-2.png", (40, 40)),
            ("a/cat.png", (50, 80)),
            ("b/cat.png", (32, 32)),
            ("dog.v2.jpg", (300, 200)),
        ):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            Image.fromarray(random.randint(0, 256, (*size, 3)).astype(np.uint8)).save(tmp_path / name)
        files = [str(tmp_path / name) for name in ("cat-2.png", "a/cat.png", "b/cat.png", "dog.v2.jpg")]
        out = tmp_path / "plots"
        visualize(small_run, out, "--data", str(tmp_path / "no_data_needed"), "--stages", "conv1", "--images", *files)
        assert {path.name for path in out.iterdir() if path.is_dir()} == {"cat-2", "cat", "cat-3", "dog.v2"}
        for folder in ("cat-2", "cat", "cat-3", "dog.v2"):
            names = {path.stem for path in (out / folder).iterdir()}
            assert names == {"input", "conv1_feature_maps", "conv1_reconstructions"}
        assert not (out / "top9.json").exists() and (out / "conv1_filters.png").exists()

    def test_what_needs_no_images_is_drawn_without_them(self, small_run, tmp_path, capsys):
        state = checkpoint.load(small_run / "model.pt")
        state["config"] = state["config"] | {"data": str(tmp_path / "gone")}
        torch.save(state, tmp_path / "model.pt")
        visualize(tmp_path, tmp_path / "plots")
        drawn = {path.stem for path in (tmp_path / "plots").iterdir()}
        assert drawn == {name for name in FIXED_NAMES if name.startswith(("training_curves", "conv1_filters"))}
        printed = capsys.readouterr().out
        assert "left out, they need the test images: input, feature_maps" in printed
        assert "gone is not a folder" in printed

    @pytest.mark.parametrize(
        "name, folder", [("...png", "image"), ("名前.png", "名前"), ("cost_$5_^$x.png", "cost_$5_^$x")]
    )
    def test_odd_file_names(self, small_run, tmp_path, name, folder):
        Image.fromarray(np.full((9, 9, 3), 99, np.uint8)).save(tmp_path / name, "png")
        visualize(small_run, tmp_path / "plots", "--images", str(tmp_path / name), "--figures", "input")
        assert (tmp_path / "plots" / folder / "input.png").exists()


class TestChannels:
    def test_all_channels_on_several_pages(self, inspection):
        settings = Settings(stages=("conv1",), channels="all", top=1, rules=("guided",))
        drawn = dict(top9.draw_top9(add_search(inspection, settings), settings))
        entries = drawn.pop(Path("top9"))
        names = {path.name for path in drawn}
        dead = (inspection.search.top["conv1"].scores[:, 0] <= 0).nonzero().flatten().tolist()
        alive = set(range(64)) - set(dead)
        pages = {f"conv1_top9_page_{n}" for n in range(1, -(-len(alive) // top9.CHANNELS_PER_PAGE) + 1)}
        assert names == {f"conv1_top9_channel_{channel}" for channel in alive} | pages
        assert [entry["channel"] for entry in entries] == sorted(alive)

    def test_dead_channels_are_named_and_not_drawn(self, small_run, tmp_path, capsys):
        state = checkpoint.load(small_run / "model.pt")
        for channel, value in ((5, 0), (9, 3.0)):
            state["model"]["bn1.weight"][channel], state["model"]["bn1.bias"][channel] = 0, value
        torch.save(state, tmp_path / "model.pt")
        visualize(tmp_path, tmp_path / "plots", *"--figures top9 --stages conv1 --channels 5 9".split())
        assert "conv1: no image excites these channels: 5" in capsys.readouterr().out
        names = {path.stem for path in (tmp_path / "plots").glob("*.png")}
        assert names == {"conv1_top9", "conv1_top9_channel_9"}
        summary = json.loads((tmp_path / "plots" / "summary.json").read_text())
        assert 5 in summary["dead_channels"]["conv1"] and 9 not in summary["dead_channels"]["conv1"]

    def test_comparisons_need_a_stage_above_the_pooling(self, inspection):
        for name in ("rules", "branches", "unpooling", "sanity"):
            with pytest.raises(NotDrawn, match="one of the --stages conv2_x"):
                next(FIGURES[name].draw(inspection, Settings(stages=("conv1",))))

    def test_a_class_that_the_network_does_not_know_is_not_misclassified(self, small_run, tmp_path):
        other = write_folder(tmp_path / "other", classes=("disk", "ring", "cross"))
        inspection = inspect(small_run / "model.pt", SETTINGS, "cpu", source=str(other))
        every_image = TopActivations(
            torch.ones(64, 12), torch.arange(12).expand(64, 12), torch.zeros(64, 12, dtype=torch.int64), (16, 16)
        )
        search = SearchResult({"conv1": every_image}, inspection.search.peaks, inspection.search.logits)
        result = inspect_channel(replace(inspection, search=search), SETTINGS, "conv1", 3)
        assert {image.label for image in result.images} == {"disk", "ring", "cross"}
        for image in result.images:
            known = image.label != "cross"
            assert image.correct == (image.label == image.predicted if known else None)

    def test_limit_spreads_over_the_test_split(self, small_run):
        inspection = add_preprocessing(load_inspection(small_run / "model.pt", "cpu"))
        assert add_test_images(inspection, 6).searched.tolist() == [0, 2, 4, 6, 8, 10]
        assert add_test_images(inspection, 600).searched.tolist() == list(range(12))

    def test_a_limited_search_shows_the_images_it_searched(self, small_run):
        settings = Settings(limit=5)
        inspection = inspect(small_run / "model.pt", settings, "cpu")
        images, labels = inspection.images, inspection.labels
        searched = [0, 2, 4, 7, 9]
        with torch.inference_mode():
            inputs = inspection.preprocess(images)
            features = inspection.network.trace(inputs).features["conv5_x"]
            peaks, predicted = features.amax((2, 3)), inspection.network(inputs).argmax(1)
        for channel in chosen_channels(settings, inspection.search.top["conv5_x"])[:3]:
            result = inspect_channel(inspection, settings, "conv5_x", channel)
            found = [image.index for image in result.images]
            assert sorted(found) == searched
            assert torch.allclose(result.patches, images[found] / 255, atol=1e-6)
            for image in result.images:
                assert image.label == inspection.label_names[labels[image.index]]
                assert image.predicted == inspection.metadata.classes[predicted[image.index]]
                assert image.activation == pytest.approx(peaks[image.index, channel].item(), rel=1e-4, abs=1e-6)

    def test_strongest_units_are_told_by_their_place_in_the_test_split(self, small_run):
        inspection = inspect(small_run / "model.pt", Settings(limit=5), "cpu")
        top = TopActivations(
            torch.tensor([[4.0, 3], [2, 1], [9, 8]]),
            torch.tensor([[1, 0], [4, 2], [3, 1]]),
            torch.tensor([[7, 0], [8, 0], [9, 0]]),
            (4, 4),
        )
        units = strongest_units(inspection, "conv3_x", [2, 0], top)
        assert units.images.tolist() == [7, 2] and units.positions.tolist() == [9, 7]
        assert units.channels == [2, 0] and units.scores.tolist() == [9, 4]

    def test_an_unpooling_that_is_not_exact_is_named(self, inspection):
        settings = Settings(unpool="overwrite")
        for name in ("top9", "reconstructions", "rules", "branches", "sanity"):
            _, figure = next(FIGURES[name].draw(inspection, settings))
            texts = " ".join(part.get_suptitle() for part in (figure, *figure.subfigs))
            assert "overwriting unpooling" in texts.replace("\n", " "), name

    def test_the_search_is_one_pass_for_all_stages_and_the_logits(self, inspection, monkeypatch):
        passes = []
        trace = ResNet18.trace
        monkeypatch.setattr(
            ResNet18, "trace", lambda self, images, until: passes.append(until) or trace(self, images, until)
        )
        found = add_search(inspection, Settings(stages=("conv1", "conv4_x", "conv2_x"))).search
        assert found.top.keys() == {"conv1", "conv4_x", "conv2_x"} and len(found.logits) == 12
        assert passes == ["conv5_x"]


class TestPlainStateDicts:
    def test_imagenets_thousand_classes(self, tmp_path, small_run):
        torch.manual_seed(0)
        torch.save(ResNet18(1000).state_dict(), tmp_path / "model.pt")
        picture = next((small_run.parent / "pictures" / "test" / "disk").iterdir())
        flags = "--figures training_curves input reconstructions --stages conv1 --rules guided --images".split()
        visualize(tmp_path, tmp_path / "plots", *flags, str(picture))
        names = {path.name for path in (tmp_path / "plots" / picture.stem).iterdir()}
        assert names == {"input.png", "conv1_reconstructions.png"}
        assert not (tmp_path / "plots" / "training_curves.png").exists()  # it has no history

    def test_others_take_names_and_statistics_from_the_data(self, tmp_path, small_run):
        state = checkpoint.load(small_run / "model.pt")
        torch.save(state["model"], tmp_path / "plain.pth")
        inspection = load_inspection(tmp_path / "plain.pth", "cpu", source=str(small_run.parent / "pictures"))
        metadata = add_preprocessing(inspection).metadata
        assert metadata.classes == tuple(state["classes"])
        assert metadata.mean == pytest.approx(tuple(state["mean"]))
        assert metadata.std == pytest.approx(tuple(state["std"]))


def test_the_first_test_image_is_the_picture_unless_files_are_given(inspection, small_run):
    (picture,) = add_pictures(inspection).pictures
    assert torch.equal(picture.image, inspection.images[0]) and picture.folder == "" and picture.label == "disk"
    file = next((small_run.parent / "pictures" / "test" / "ring").iterdir())
    (picture,) = add_pictures(inspection, [str(file)]).pictures
    with Image.open(file) as image:
        assert np.array_equal(to_array(picture.image), np.asarray(image)) and picture.label is None
