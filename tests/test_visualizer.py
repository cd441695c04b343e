"""What the figures are made of, on a network that has learned the drawn shapes."""

import json

import numpy as np
import pytest
import torch
from conftest import write_folder
from PIL import Image

import visualizer
from dataset import sources
from dataset.preprocess import Preprocess
from dataset.shapes import draw_shapes
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


def visualize(run, out, *flags):
    visualizer.main(["--ckpt", str(run / "model.pt"), "--out", str(out), "--device", "cpu", *flags])


def is_a_picture(path):
    """A PNG of at least 200 dots an inch that is neither blank nor narrower than a column."""
    with Image.open(path) as picture:
        assert picture.format == "PNG" and min(picture.info["dpi"]) >= 199.9
        array = np.asarray(picture.convert("RGB"))
    return array.shape[1] >= 3.3 * 200 and array.std() > 5


@pytest.fixture(scope="module")
def plots(small_run, tmp_path_factory):
    """All figures of the small run, drawn with the defaults."""
    out = tmp_path_factory.mktemp("plots")
    visualize(small_run, out)
    return out


class TestDefaults:
    def test_every_figure_is_there_under_its_name(self, plots):
        names = {path.stem for path in plots.glob("*.png")}
        channels = {name for name in names if "_channel_" in name}
        assert names - channels == FIXED_NAMES
        assert sum(name.startswith("conv1_top9_channel_") for name in channels) == 9
        assert sum(name.startswith("conv5_x_top9_channel_") for name in channels) == 9
        assert all(is_a_picture(path) for path in plots.glob("*.png"))
        assert {path.suffix for path in plots.iterdir()} == {".png", ".json"}

    def test_top9_json_is_what_a_brute_force_search_finds(self, plots, small_run):
        entries = json.loads((plots / "top9.json").read_text())
        assert len(entries) == 2 * 9 * 9
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
            assert channels == peaks.amax(0).sort(dim=0, descending=True, stable=True).indices[:9].tolist()
            for channel in channels:
                nine = [entry for entry in mine if entry["channel"] == channel]
                assert [entry["rank"] for entry in nine] == list(range(1, 10))
                expected = peaks[:, channel].sort(dim=0, descending=True, stable=True)
                assert [entry["index"] for entry in nine] == expected.indices[:9].tolist()
                for entry, score in zip(nine, expected.values, strict=False):
                    index = entry["index"]
                    assert entry["activation"] == pytest.approx(score.item(), rel=1e-5)
                    unit = features[index, channel, entry["row"], entry["column"]]
                    assert unit.item() == pytest.approx(score.item(), rel=1e-5)
                    assert entry["label"] == classes[labels[index]]
                    assert entry["predicted"] == classes[predicted[index]]
                    assert entry["correct"] == (predicted[index] == labels[index]).item()
                    assert entry["file"] == str(files[index])
                    assert entry["scale"].keys() == entry["correlation"].keys() == {"deconvnet", "guided"}

    def test_the_same_bytes_again(self, plots, small_run, tmp_path):
        visualize(small_run, tmp_path)
        for path in plots.iterdir():
            if path.name != "summary.json":  # which names its folder
                assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name

    def test_the_reconstructions_shown_are_the_mirrors(self, small_run):
        subject = visualizer.Subject(visualizer.parse_args(["--ckpt", str(small_run / "model.pt"), "--device", "cpu"]))
        shown = subject.channel("conv5_x", 7)
        network, info = checkpoint.load_network(small_run / "model.pt")
        images, _, _ = sources.load(str(small_run.parent / "pictures"), "test")
        indices = [entry["index"] for entry in shown["entries"]]
        with torch.inference_mode():
            trace = network.trace(Preprocess(32, info.mean, info.std)(images[indices]))
            signal = isolate(trace.features["conv5_x"], 7, "peak")
            for rule in ("deconvnet", "guided"):
                picture = ReverseResNet18(network, rule)(signal, "conv5_x", trace).permute(0, 2, 3, 1)
                assert shown["pictures"][rule].shape == (9, 32, 32, 3)  # the whole image: it is small
                assert np.allclose(shown["pictures"][rule], picture, atol=1e-5 * shown["scale"][rule])
        assert np.allclose(shown["patches"], images[indices].permute(0, 2, 3, 1) / 255, atol=1e-6)


class TestOnePicture:
    """The figures of one image, on the network alone."""

    @pytest.fixture
    def subject(self, small_run):
        flags = ["--ckpt", str(small_run / "model.pt"), "--device", "cpu", "--stages", "conv5_x", "conv2_x"]
        return visualizer.Subject(visualizer.parse_args(flags))

    @pytest.fixture
    def trace(self, subject):
        image = subject.test[0][:1]
        with torch.inference_mode():
            return subject.network.trace(subject.preprocess(image))

    def test_the_prediction(self, subject, trace):
        ((_, figure),) = visualizer.draw_input(subject)
        with torch.inference_mode():
            probabilities = subject.network.classify(trace.features["conv5_x"]).softmax(1)[0]
        order = probabilities.argsort(descending=True).tolist()
        bars = figure.get_axes()[1]
        assert [bar.get_width() for bar in bars.patches] == pytest.approx(
            (100 * probabilities[order]).tolist(), rel=1e-5
        )
        assert [text.get_text() for text in bars.get_yticklabels()] == [subject.classes[n] for n in order]

    def test_feature_maps(self, subject, trace):
        drawn = {path.name: figure for path, figure in visualizer.draw_feature_maps(subject)}
        canvas = drawn["conv5_x_feature_maps"].get_axes()[0].get_images()[0].get_array()
        expected = trace.features["conv5_x"][0, :, 0, 0].reshape(16, 32)  # of 32x32 pixels one unit a map is left
        assert np.allclose(canvas[::8, ::8], expected, atol=1e-5)
        canvas = drawn["conv2_x_feature_maps"].get_axes()[0].get_images()[0].get_array()
        assert np.allclose(canvas[9:17, 18:26], trace.features["conv2_x"][0, 10], atol=1e-5)

    def test_reconstructions(self, subject, trace):
        for path, figure in visualizer.draw_reconstructions(subject):
            stage = path.name.removesuffix("_reconstructions")
            maps = trace.features[stage][0]
            panels = [axes for axes in figure.get_axes() if axes.get_title("left").startswith("channel")]
            channels = [int(axes.get_title("left").split()[1].strip(",")) for axes in panels]
            assert channels == maps.amax((1, 2)).sort(descending=True, stable=True).indices[:9].tolist()
            for axes, channel in zip(panels, channels, strict=True):
                picture = axes.get_images()[0].get_array()
                assert f"peak {maps[channel].max():.2f}" in axes.get_title("left")
                for place, rule in ((1, "deconvnet"), (2, "guided")):
                    with torch.inference_mode():
                        signal = isolate(trace.features[stage], channel)
                        expected = ReverseResNet18(subject.network, rule)(signal, stage, trace)[0].permute(1, 2, 0)
                    tile = 2 * picture[:, place * 34 : place * 34 + 32] - 1
                    assert np.allclose(tile, expected / expected.abs().max(), atol=1e-4), (stage, channel, rule)


class TestFlags:
    @pytest.mark.parametrize("name", visualizer.FIGURES)
    def test_each_figure_alone(self, small_run, tmp_path, name):
        visualize(small_run, tmp_path, "--figures", name)
        several = {
            "filters": {stem for stem in FIXED_NAMES if stem.startswith("conv1_filters")},
            "evolution": set(),  # the run kept no snapshots
            **{
                each: {f"{stage}_{each}" for stage in ("conv1", "conv5_x")}
                for each in ("feature_maps", "reconstructions", "top9")
            },
        }
        drawn = {path.stem for path in tmp_path.glob("*.png") if "_channel_" not in path.stem}
        assert drawn == several.get(name, {name})
        assert (tmp_path / "top9.json").exists() == (name == "top9")
        assert (tmp_path / "summary.json").exists() == (name in visualizer.OF_THE_TEST_SPLIT)

    def test_stages_channels_top_rules_and_units(self, small_run, tmp_path):
        args = visualizer.parse_args(["--ckpt", str(small_run / "model.pt"), "--stages", "conv3_x"])
        a, b = visualizer.Subject(args).chosen("conv3_x")[3:5]  # two that are alive
        flags = f"--figures top9 --stages conv3_x --channels {a} {b} --top 4 --rules gradient --unpool overwrite"
        visualize(small_run, tmp_path, *flags.split(), "--units", "map", "--batch-size", "5")
        names = {path.name for path in tmp_path.iterdir()}
        pictures = {f"conv3_x_{name}.png" for name in ("top9", f"top9_channel_{a}", f"top9_channel_{b}")}
        assert names == pictures | {"top9.json", "summary.json"}
        entries = json.loads((tmp_path / "top9.json").read_text())
        assert [(entry["channel"], entry["rank"]) for entry in entries] == [
            (c, n) for c in (a, b) for n in (1, 2, 3, 4)
        ]
        assert entries[0]["scale"].keys() == {"gradient"}

    def test_dots_an_inch(self, small_run, tmp_path):
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

    def test_all_channels_on_several_pages(self, small_run, tmp_path):
        visualize(small_run, tmp_path, *"--figures top9 --stages conv1 --channels all --top 1 --rules guided".split())
        drawn = {int(path.stem.rsplit("_", 1)[1]) for path in tmp_path.glob("conv1_top9_channel_*.png")}
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert drawn | set(summary["dead_channels"]["conv1"]) == set(range(64))
        assert len(list(tmp_path.glob("conv1_top9_page_*.png"))) == -(-len(drawn) // visualizer.A_PAGE)

    def test_dead_channels_are_named_and_not_drawn(self, small_run, tmp_path, capsys):
        args = visualizer.parse_args(["--ckpt", str(small_run / "model.pt"), "--stages", "conv1"])
        alive = next(channel for channel in visualizer.Subject(args).chosen("conv1") if channel != 5)
        state = checkpoint.load(small_run / "model.pt")
        for name in ("weight", "bias"):
            state["model"][f"bn1.{name}"][5] = 0
        torch.save(state, tmp_path / "model.pt")
        visualize(tmp_path, tmp_path / "plots", *f"--figures top9 --stages conv1 --channels 5 {alive}".split())
        assert "conv1: no image excites 1 channels: 5" in capsys.readouterr().out
        assert not (tmp_path / "plots" / "conv1_top9_channel_5.png").exists()
        summary = json.loads((tmp_path / "plots" / "summary.json").read_text())
        assert 5 in summary["dead_channels"]["conv1"]

    def test_comparisons_need_a_stage_above_the_pooling(self, small_run, tmp_path, capsys):
        visualize(small_run, tmp_path, *"--figures rules branches unpooling sanity --stages conv1".split())
        assert capsys.readouterr().out.count("left out, it needs one of the --stages conv2_x") == 4

    def test_nothing_twice(self, small_run, tmp_path):
        flags = "--figures top9 top9 --stages conv1 conv1 --channels 3 3 --rules guided guided --top 20 --limit 5"
        visualize(small_run, tmp_path, *flags.split())
        entries = json.loads((tmp_path / "top9.json").read_text())
        assert [entry["rank"] for entry in entries] == [1, 2, 3, 4, 5]

    def test_every_stage(self, small_run, tmp_path):
        visualize(small_run, tmp_path, "--figures", "feature_maps", "reconstructions", "--stages", *STAGES)
        assert len(list(tmp_path.glob("*_feature_maps.png"))) == len(list(tmp_path.glob("*_reconstructions.png"))) == 5

    def test_a_class_that_the_network_does_not_know_is_not_misclassified(self, small_run, tmp_path):
        other = write_folder(tmp_path / "other", classes=("disk", "ring", "cross"))
        visualize(small_run, tmp_path / "plots", "--figures", "top9", "--data", str(other))
        entries = json.loads((tmp_path / "plots" / "top9.json").read_text())
        for entry in entries:
            known = entry["label"] != "cross"
            assert entry["correct"] == (entry["label"] == entry["predicted"] if known else None)
        assert {entry["label"] for entry in entries} == {"disk", "ring", "cross"}

    def test_limit_spreads_over_the_test_split(self, small_run):
        args = visualizer.parse_args(["--ckpt", str(small_run / "model.pt"), "--limit", "6"])
        assert visualizer.Subject(args).searched.tolist() == [0, 2, 4, 6, 8, 10]
        args = visualizer.parse_args(["--ckpt", str(small_run / "model.pt"), "--limit", "600"])
        assert len(visualizer.Subject(args).searched) == 12

    def test_a_limited_search_shows_the_images_it_searched(self, small_run):
        args = visualizer.parse_args(["--ckpt", str(small_run / "model.pt"), "--device", "cpu", "--limit", "5"])
        subject = visualizer.Subject(args)
        images, labels, classes = subject.test
        searched = [0, 2, 4, 7, 9]
        with torch.inference_mode():
            inputs = subject.preprocess(images)
            peaks, predicted = subject.network.trace(inputs).features["conv5_x"].amax((2, 3)), subject.network(inputs)
        for channel in subject.chosen("conv5_x")[:3]:
            order = sorted(searched, key=lambda index: -peaks[index, channel])  # noqa: B023
            shown = subject.channel("conv5_x", channel)
            assert np.allclose(shown["patches"], images[order].permute(0, 2, 3, 1) / 255, atol=1e-6)
            for entry, index in zip(shown["entries"], order, strict=True):
                assert (entry["index"], entry["label"]) == (index, classes[labels[index]])
                assert entry["activation"] == pytest.approx(peaks[index, channel].item(), rel=1e-5)
                assert entry["predicted"] == classes[predicted[index].argmax()]

    def test_an_unpooling_that_is_not_exact_is_told(self, small_run):
        flags = ["--ckpt", str(small_run / "model.pt"), "--device", "cpu", "--unpool", "overwrite"]
        subject = visualizer.Subject(visualizer.parse_args(flags))
        for name in ("top9", "reconstructions", "rules", "branches", "sanity"):
            _, figure = next(visualizer.FIGURES[name](subject))
            texts = " ".join(part.get_suptitle() for part in (figure, *figure.subfigs))
            assert "unpooling that overwrites" in texts.replace("\n", " "), name

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

    def test_the_search_is_one_pass_for_all_stages(self, small_run, monkeypatch):
        passes = []
        trace = ResNet18.trace
        monkeypatch.setattr(
            ResNet18, "trace", lambda self, images, until: passes.append(until) or trace(self, images, until)
        )
        args = visualizer.parse_args(["--ckpt", str(small_run / "model.pt"), "--stages", "conv1", "conv4_x", "conv2_x"])
        assert visualizer.Subject(args).top.keys() == {"conv1", "conv4_x", "conv2_x"}
        assert passes == ["conv4_x"]

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
        visualize(small_run, out, "--data", str(tmp_path / "no_data_needed"), "--images", *files)
        assert {path.name for path in out.iterdir() if path.is_dir()} == {"cat-2", "cat", "cat-3", "dog.v2"}
        for folder in ("cat-2", "cat", "cat-3", "dog.v2"):
            assert {path.stem for path in (out / folder).iterdir()} == {
                name for name in FIXED_NAMES if name.endswith(("input", "feature_maps", "reconstructions"))
            }
        assert not (out / "top9.json").exists() and (out / "conv1_filters.png").exists()

    def test_a_long_list_of_channels_goes_in_parts(self, small_run):
        flags = ["--ckpt", str(small_run / "model.pt"), "--device", "cpu", "--batch-size"]
        small, large = (visualizer.Subject(visualizer.parse_args([*flags, size])) for size in ("3", "50"))
        channels = [5, 7, 500, 0, 1, 2, 9]
        parts, whole = (each.reconstruct_maps(each.pictures[0], "conv5_x", channels) for each in (small, large))
        for rule in ("deconvnet", "guided"):
            assert parts[rule].shape == (7, 32, 32, 3) and parts[rule].any()
            assert np.allclose(parts[rule], whole[rule], atol=1e-5 * np.abs(whole[rule]).max())

    def test_what_needs_no_images_is_drawn_without_them(self, small_run, tmp_path, capsys):
        state = checkpoint.load(small_run / "model.pt")
        state["config"] = state["config"] | {"data": str(tmp_path / "gone")}
        torch.save(state, tmp_path / "model.pt")
        visualize(tmp_path, tmp_path / "plots")
        drawn = {path.stem for path in (tmp_path / "plots").iterdir()}
        assert drawn == {name for name in FIXED_NAMES if name.startswith(("training_curves", "conv1_filters"))}
        said = capsys.readouterr().out
        assert "left out, they need the test images: input, feature_maps" in said and "gone is no folder" in said

    @pytest.mark.parametrize(
        "name, folder", [("...png", "image"), ("名前.png", "名前"), ("cost_$5_^$x.png", "cost_$5_^$x")]
    )
    def test_odd_file_names(self, small_run, tmp_path, name, folder):
        Image.fromarray(np.full((9, 9, 3), 99, np.uint8)).save(tmp_path / name, "png")
        visualize(small_run, tmp_path / "plots", "--images", str(tmp_path / name), "--figures", "input")
        assert (tmp_path / "plots" / folder / "input.png").exists()


class TestPlainStateDicts:
    def test_imagenets_thousand_classes(self, tmp_path, small_run):
        torch.manual_seed(0)
        torch.save(ResNet18(1000).state_dict(), tmp_path / "imagenet.pth")
        picture = next((small_run.parent / "pictures" / "test" / "disk").iterdir())
        visualizer.main(
            ["--ckpt", str(tmp_path / "imagenet.pth"), "--images", str(picture), "--out", str(tmp_path / "plots")]
        )
        assert (tmp_path / "plots" / picture.stem / "conv5_x_reconstructions.png").exists()
        assert not (tmp_path / "plots" / "training_curves.png").exists()  # it has no history

    def test_others_take_names_and_statistics_from_the_data(self, tmp_path, small_run):
        state = checkpoint.load(small_run / "model.pt")
        torch.save(state["model"], tmp_path / "plain.pth")
        pictures = small_run.parent / "pictures"
        args = visualizer.parse_args(["--ckpt", str(tmp_path / "plain.pth"), "--data", str(pictures)])
        subject = visualizer.Subject(args)
        assert subject.classes == state["classes"]
        _, mean, std = subject.facts
        assert mean == pytest.approx(state["mean"]) and std == pytest.approx(state["std"])


def test_reconstructions_lie_on_the_object(trained_run, record_property):
    """The share of a reconstruction's energy on the object's mask is well above the mask's share of the area.

    conv5_x, the strongest unit of each of 200 test images. The mask is drawn with the image; no network saw it.
    """
    network, info = checkpoint.load_network(trained_run / "model.pt")
    assert info.result["test_accuracy"] > 0.6, "a network that has not learned the shapes tells nothing"
    images, _, masks = (torch.from_numpy(array[:200]) for array in draw_shapes("test"))
    masks = masks.repeat_interleave(2, 1).repeat_interleave(2, 2)  # 32x32 -> 64x64
    with torch.inference_mode():
        trace = network.trace(Preprocess(64, info.mean, info.std)(images))
        features = trace.features["conv5_x"]
        signal = isolate(features, features.amax((2, 3)).argmax(1), "peak")
        for rule in ("deconvnet", "guided", "gradient"):
            energy = ReverseResNet18(network, rule)(signal, "conv5_x", trace).square().sum(1)
            share = ((energy * masks).sum((1, 2)) / energy.sum((1, 2))).mean().item()
            area = masks.float().mean().item()
            record_property(rule, f"energy on the mask {share:.3f}, area of the mask {area:.3f}")
            print(f"{rule}: energy on the mask {share:.3f}, area of the mask {area:.3f}")
            assert share > 1.4 * area, rule
