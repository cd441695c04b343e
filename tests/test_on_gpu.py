"""The steps of on_gpu.py, what it stores of a failure, its rehearsal and its restart."""

import json
import shutil
import time
from dataclasses import replace

import gpu_bench
import gpu_steps
import gpu_table
import on_gpu
import parts
import pytest
from children import Child
from conftest import ends


def bench(tmp_path, **settings):
    fixed = {"out": tmp_path, "data": "shapes", "root": "data", "pictures": tmp_path, "device": "cpu"}
    return gpu_bench.Bench(**fixed | {"scale": gpu_bench.TINY, "minutes": 30} | settings)


class TestSteps:
    @pytest.mark.parametrize(
        "rows, flags",
        [
            ({}, []),
            ({"(a) usual script, fp32, 2 workers": [900.0], "(b) this project, bf16, eager": [5.0]}, []),
            ({"(b) this project, bf16, eager": [5.0], "(b) this project, bf16, captured": [9.0]}, ["--cuda-graph"]),
            ({"(b) this project, bf16, compiled, captured": [9.0]}, ["--compile", "--cuda-graph"]),
            ({"(b) this project, bf16, compiled, not captured: no": [9.0]}, []),
        ],
    )
    def test_training_uses_the_fastest_form_that_works(self, tmp_path, rows, flags):
        results = {"throughput": {"images_per_second": rows}}
        assert gpu_steps.fastest_flags(bench(tmp_path, results=results)) == flags

    def test_a_failed_step_is_recorded_and_the_next_one_runs(self, tmp_path, monkeypatch, capsys):
        def fails(bench):
            raise gpu_bench.StepFailed("no card", {"summary": "2 of 3"})

        monkeypatch.setitem(gpu_steps.STEPS, "tests", gpu_steps.Step(fails, 1, ""))
        for again in (False, True):
            with pytest.raises(SystemExit, match="1"):
                on_gpu.main(["--out", str(tmp_path), "--tiny", "--steps", "tests", "checkpoint"])
            assert ("tests: failed, stored" in capsys.readouterr().out) == again
        steps = json.loads((tmp_path / "report.json").read_text())["steps"]
        assert steps["tests"]["error"] == "no card" and steps["tests"]["result"] == {"summary": "2 of 3"}
        assert steps["checkpoint"]["error"] == "the recipe has no checkpoint"
        table = (tmp_path / "table.md").read_text()
        assert "| tests | failed: no card |" in table and "2 of 3" in table

    def test_a_command_that_fails_fails_its_step(self, tmp_path, forked):
        run = replace(bench(tmp_path), name="losses").train
        with pytest.raises(gpu_bench.StepFailed, match="nowhere is not a folder"):
            run(tmp_path / "out", "--data", "nowhere")

    def test_a_stopped_recipe_is_continued_and_its_last_checkpoint_kept(self, tmp_path, small_run, monkeypatch):
        (tmp_path / "recipe").mkdir()
        for name in ("last.pt", "history.jsonl"):
            shutil.copy(small_run / name, tmp_path / "recipe")
        calls = []
        monkeypatch.setattr(
            gpu_bench.Bench, "train", lambda bench, out, *flags, **limits: calls.append((flags, limits))
        )
        stopped = bench(tmp_path, spent=600)
        found = gpu_steps.recipe(stopped)
        ((flags, limits),) = calls
        assert "--resume" in flags and limits == {"seconds": 20 * 60 - gpu_steps.LAST_STEPS_SECONDS}
        assert not found["finished"] and found["step"] == 6 and 0 <= found["test_accuracy"] <= 1
        assert gpu_steps.split_checkpoint(stopped)["file"] == "last.pt"

    def test_other_settings_do_not_mix_with_a_stored_report(self, tmp_path, capsys):
        (tmp_path / "report.json").write_text(json.dumps({"settings": {"device": "cuda"}, "steps": {}}))
        ends(capsys, on_gpu.main, ["--out", tmp_path, "--tiny"], 1, "--device cuda", "another --out")

    def test_the_table_says_which_rows_are_extrapolated(self):
        result = {"hours": 1.5, "iterations": 1200, "seconds": 120.0, "flags": ["--cuda-graph"]}
        report = {"steps": {"extrapolation": {"status": "done", "result": result}}}
        assert "`train.py --cuda-graph`" in (table := gpu_table.gpu_table(report))
        assert "1.50 h (extrapolated from 1,200 in 120 s)" in table


@pytest.mark.slow
def test_the_rehearsal_continues_after_a_kill(tmp_path, capsys, forked):
    """Steps at tiny size, as a user runs them; the others are longer runs of the same scripts."""
    out, report = tmp_path / "out", tmp_path / "out" / "report.json"
    wanted = ["environment", "pictures", "losses", "throughput", "recipe", "checkpoint", "figures"]
    flags = ["--out", str(out), "--device", "cpu", "--tiny", "--steps", *wanted]
    with Child(on_gpu.__file__, *flags, log=tmp_path / "log") as process:
        while not report.exists() and process.poll() is None:
            time.sleep(0.05)
        process.kill()
    first = json.loads(report.read_text())["steps"]["environment"]

    on_gpu.main(flags)
    assert "environment: done, stored\npictures: " in capsys.readouterr().out
    steps = json.loads(report.read_text())["steps"]
    assert list(steps) == wanted and steps["environment"] == first
    assert {step["status"] for step in steps.values()} == {"done"}

    losses = steps["losses"]["result"]
    assert losses["eager"] == losses["again"] == losses["captured"] and losses["said"].startswith("not captured")
    result = steps["throughput"]["result"]
    assert result["batch_size"] == gpu_bench.TINY.batches[0]
    assert len(result["images_per_second"]) == 2 and not result["failures"]
    assert steps["recipe"]["result"]["finished"] and steps["recipe"]["result"]["step"] == 2
    assert "conv1_filters.png" in steps["figures"]["result"]["files"]
    model = (out / "recipe" / "model.pt").read_bytes()
    assert parts.join(out / "parts", tmp_path / "joined").read_bytes() == model
    assert max(file.stat().st_size for file in (out / "parts").iterdir()) < 16 * 2**20

    on_gpu.main(flags)
    assert capsys.readouterr().out.count(": done, stored\n") == len(wanted)


@pytest.mark.slow
def test_without_the_device_nothing_is_stored(tmp_path, capsys, forked):
    with pytest.raises(SystemExit, match="1"):
        on_gpu.main(["--out", str(tmp_path), "--device", "cuda:99"])
    assert "error: device 'cuda:99' does not work" in capsys.readouterr().err
    assert not (tmp_path / "report.json").exists()
