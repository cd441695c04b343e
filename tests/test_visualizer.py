"""The script's flags and the files it writes."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_inside, ends, visualize, write_folder
from matplotlib.figure import Figure
from PIL import Image

import visualizer
from analysis.channels import chosen_channels
from analysis.inspection import inspect, timed
from analysis.settings import Settings
from figures import FIGURES, output, style
from figures.registry import SECTIONS
from runtime import checkpoint

NAMES = set(
    "training_curves conv1_filters conv1_filters_red conv1_filters_green conv1_filters_blue input conv1_feature_maps "
    "conv5_x_feature_maps conv1_reconstructions conv5_x_reconstructions conv1_top9 conv5_x_top9 conv1_top9_deconvnet "
    "conv5_x_top9_deconvnet hierarchy hierarchy_deconvnet rules branches mirrors sanity faithfulness attributions "
    "correspondence confusion_matrix mistakes classes why why_mistake".split()
)
LONG_NAMES = ("$x_5^$ in several words, of which some are long", "American_Staffordshire_Terrier", "a" * 40)
DRAWN = []  # the figures of `plots`


@pytest.fixture(scope="module")
def plots(small_run, tmp_path_factory):
    """All figures of the small run with other class names, drawn with the defaults but for fewer dots per inch."""
    out, run, state = tmp_path_factory.mktemp("plots"), tmp_path_factory.mktemp("run"), checkpoint.load(small_run)
    config = state["config"] | {"data": str(write_folder(run / "pictures", train=1, names=LONG_NAMES))}
    torch.save(state | {"classes": LONG_NAMES, "config": config}, run / "model.pt")
    with pytest.MonkeyPatch.context() as patch:
        save = style.save
        patch.setattr(style, "save", lambda figure, *args: [save(figure, *args), DRAWN.append(figure)])
        visualize(run, out, "--dpi", "150", "--score-images", "2")
        visualize(run, run / "plots", "--figures", "invariance")
    return out


def read(folder, name="summary"):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.mark.slow
class TestDefaults:
    def test_every_figure_is_there_neither_blank_nor_narrower_than_a_column(self, plots):
        names = {path.stem for path in plots.glob("*.png")}
        channels = {f"{entry['stage']}_top9_channel_{entry['channel']}" for entry in read(plots, "top9")}
        assert names - channels == NAMES - ({"mistakes", "why_mistake"} if read(plots)["accuracy"] == 1 else set())
        assert channels < names and {path.suffix for path in plots.iterdir()} == {".png", ".json", ".html"}
        for path in plots.glob("*.png"):
            with Image.open(path) as picture:
                assert picture.format == "PNG" and picture.info["dpi"] == pytest.approx((150, 150), abs=0.1)
                array = np.asarray(picture.convert("RGB"))
            assert array.shape[1] >= 3.3 * 150 and array.std() > 5, path.name

    def test_text_is_inside_the_figures_and_at_least_7_points(self, plots):
        figures = [figure for figure in DRAWN if "excites channel " not in figure.get_suptitle()]  # see test_figures
        assert len(figures) >= len(NAMES) - 2
        for figure in figures:
            assert_inside(figure)

    @pytest.mark.parametrize(
        "flags",
        ["--figures sanity top9 confusion_matrix feature_maps --stages conv3_x --channels 3 17 40 --no-report",
         "--figures filters confusion_matrix --format pdf"],  # without a report, which would name the folder
    )  # fmt: skip
    def test_the_same_bytes_again(self, small_run, tmp_path, flags):
        for name in ("a", "b"):
            visualize(small_run, tmp_path / name, *flags.split())
        paths = list((tmp_path / "a").iterdir())
        assert len(paths) >= 6 and {path.suffix for path in paths} == {".pdf" if "pdf" in flags else ".png", ".json"}
        assert [path.name for path in paths if path.read_bytes() != (tmp_path / "b" / path.name).read_bytes()] == []


class TestFlags:
    def test_stages_channels_top_rules_and_units(self, small_run, tmp_path):
        search = inspect(small_run / "model.pt", Settings(), "cpu", stages=["conv3_x"]).search
        a, b = chosen_channels(Settings(), search, "conv3_x")[:2]
        flags = f"--figures top9 --stages conv3_x --channels {b} {a} --top 4 --rules gradient --unpool overwrite"
        visualize(small_run, tmp_path, *flags.split(), "--units", "map", "--batch-size", "5", "--no-report")
        pictures = {f"conv3_x_{name}.png" for name in ("top9", f"top9_channel_{a}", f"top9_channel_{b}")}
        assert {path.name for path in tmp_path.iterdir()} == pictures | {"top9.json", "summary.json"}
        entries = read(tmp_path, "top9")
        ranks = [(entry["channel"], entry["rank"]) for entry in entries]
        assert ranks == [(channel, rank) for channel in (b, a) for rank in (1, 2, 3, 4)]
        scores = search.top["conv3_x"].scores[[b, a], :4].flatten().tolist()
        assert [entry["activation"] for entry in entries] == pytest.approx(scores, rel=1e-4, abs=1e-5)
        assert entries[0]["scale"].keys() == entries[0]["correlation"].keys() == {"gradient"}
        settings = read(tmp_path)["settings"]
        assert (settings["channels"], settings["units"], settings["unpool"]) == ([b, a], "map", "overwrite")

    @pytest.mark.parametrize(
        "flags, expected",
        [
            ("--channels all --classes 3 3", Settings(channels="all", classes=("3", "3"))),
            ("--methods random guided random", Settings(methods=("random", "guided"))),
            ("--stages conv1 conv1 --channels 3 3 --rules guided guided",
             Settings(stages=("conv1",), channels=(3,), rules=("guided",))),
        ],
    )  # fmt: skip
    def test_settings_have_each_name_and_number_once(self, flags, expected):
        assert visualizer.settings_from(visualizer.parse_args(flags.split())) == expected

    def test_every_figure_is_in_the_help_and_in_the_documentation(self, capsys):
        rows = (Path(__file__).parent.parent / "docs" / "figures.md").read_text(encoding="utf-8").splitlines()
        with pytest.raises(SystemExit):
            visualizer.parse_args(["--help"])
        text = capsys.readouterr().out
        for name, entry in FIGURES.items():
            assert entry.title and entry.reading.endswith(".") and f"  {name} " in text and entry.title in text
            assert entry.needs in ("checkpoint", "pictures", "search", "both", "either") and entry.section in SECTIONS
            (row,) = [row for row in rows if row.startswith(f"| `{name}` |")]
            assert row.endswith(f"| {entry.title} | {entry.reading} |")


class TestForecast:
    @pytest.mark.parametrize(
        "figures, searched, rate, said",
        [
            (["confusion_matrix"], 5000, 100, None),  # 52.5 s
            (["confusion_matrix"], 10_000, 50, "about 3 min on this CPU, 3 min of it to search 10,000 test images; "
             "about 25 s with --limit 1000"),
            (["filters", "faithfulness"], 1000, 10, "about 9 min on this CPU, most of it for faithfulness; --figures"),
        ],
    )  # fmt: skip
    def test_how_long_it_will_take_and_what_is_shorter(self, capsys, figures, searched, rate, said):
        visualizer.forecast(visualizer.parse_args([]), figures, searched, rate)
        printed = capsys.readouterr().out
        assert said in printed if said else printed == ""

    def test_a_search_is_timed_without_its_first_batch(self, monkeypatch):
        seconds = iter([10.0, 14.0])
        monkeypatch.setattr("time.monotonic", lambda: next(seconds, 99.0))
        rates = []
        assert list(timed(range(12), 16, rates.append)) == list(range(12)) and rates == [8 * 16 / 4]
        assert list(timed(range(5), 16, rates.append)) and len(rates) == 1  # too short

    def test_it_is_said_before_the_figures_and_a_search_stays_if_the_next_run_has_none(
        self, small_run, tmp_path, capsys, monkeypatch
    ):
        monkeypatch.setattr(visualizer, "SHORT_RUN_SECONDS", 0)
        visualize(small_run, tmp_path, "--figures", "confusion_matrix", "--batch-size", "1", "--no-report")
        printed = capsys.readouterr().out
        assert 0 < printed.index("on this CPU, most of it for confusion_matrix") < printed.index("confusion_matrix.png")
        before = read(tmp_path)
        visualize(small_run, tmp_path, "--figures", "training_curves", "--no-report")
        assert read(tmp_path) == before | {"files": ["confusion_matrix.png", "training_curves.png"]}


class TestFaults:
    @pytest.mark.parametrize(
        "error, said",
        [
            (RuntimeError("broken\non purpose"), "RuntimeError: broken on purpose"),
            (torch.OutOfMemoryError("CUDA"), "out of memory: pass a smaller --batch-size"),
        ],
    )
    def test_what_raises_does_not_cost_the_rest(self, small_run, tmp_path, capsys, monkeypatch, error, said):
        def draw(*args):
            yield Path("rules"), Figure()
            raise error

        monkeypatch.setitem(FIGURES, "rules", replace(FIGURES["rules"], draw=draw))
        monkeypatch.setattr(visualizer, "write_gallery", lambda *args: list(draw()))
        with pytest.raises(SystemExit) as end:
            visualize(small_run, tmp_path, *"--figures rules filters --gallery --stages conv1".split())
        printed, text = capsys.readouterr().err, (tmp_path / "report.html").read_text()
        assert end.value.code == 1 and all(f"error: {name}: {said}\n" in printed for name in ("rules", "gallery"))
        assert f"(rules): {said}." in text and "conv1_filters_red.png" in text
        assert (tmp_path / "conv1_filters_red.png").exists() and (tmp_path / "summary.json").exists()

    def test_ctrl_c_is_said_in_a_word(self, small_run, tmp_path, capsys, monkeypatch):
        def interrupt(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr(output, "write_figures", interrupt)
        with pytest.raises(SystemExit) as end:
            visualize(small_run, tmp_path, "--figures", "filters")
        assert end.value.code == 130 and capsys.readouterr().err == "interrupted\n"

    @pytest.mark.parametrize("name", ["conv1_filters.png", "report.html", "summary.json"])
    def test_a_full_disk_names_the_file_and_what_to_do(self, small_run, tmp_path, capsys, monkeypatch, name):
        def atomic_file(path):
            if path.name == name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return checkpoint.atomic_file(path)

        monkeypatch.setattr(output, "atomic_file", atomic_file)
        flags = ["--ckpt", small_run / "model.pt", "--out", tmp_path, "--device", "cpu", "--figures", "filters"]
        ends(capsys, visualizer.main, flags, 1, tmp_path / name, "No space left on device", "free space", "--out")

    def test_figures_of_another_network_are_removed_and_nothing_else(self, small_run, tmp_path, capsys):
        out, other = tmp_path / "plots", tmp_path / "other"
        for seed in ("0", "7"):  # without a search, the settings are the later run's
            visualize(small_run, out, "--figures", "filters", "training_curves", "--seed", seed)
        assert read(out)["settings"]["seed"] == 7
        state = checkpoint.load(small_run / "model.pt")
        state["model"]["fc.bias"][0] += 1
        other.mkdir()
        torch.save(state, other / "model.pt")
        for file in (out / "mine.png", tmp_path / "outside.png"):
            file.touch()
        summary = read(out)
        (out / "summary.json").write_text(json.dumps(summary | {"files": [*summary["files"], "../outside.png"]}))
        visualize(other, out, "--figures", "training_curves", "--no-report")
        assert {path.name for path in out.iterdir()} == {"training_curves.png", "summary.json", "mine.png"}
        assert (tmp_path / "outside.png").exists() and read(out)["files"] == ["training_curves.png"]
        assert "removed 5 files of another network" in capsys.readouterr().out
