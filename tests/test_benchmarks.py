"""The benchmarks: contestants that die or cannot compile, on_gpu.py's rehearsal, its restart, a checkpoint in parts."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import commands
import contestants
import gpu_bench
import gpu_steps
import gpu_table
import on_gpu
import parts
import pytest
import run_history
import scaling
import torch
import train_step
from conftest import ends

ON_GPU = Path(on_gpu.__file__)


def contestant(folder, **settings):
    fixed = {"data": str(folder), "folder": str(folder), "root": "", "image_size": 32, "batch_size": 4}
    fixed |= {"device": "cpu", "warm_up_seconds": 1e-3, "seconds": 1e-3}
    return contestants.Contestant(**fixed | settings)


class TestContestants:
    @pytest.mark.parametrize("settings", [{"workers": 0}, {"precision": "fp32"}], ids=["usual", "project"])
    def test_a_measurement_covers_its_seconds(self, folder, settings):
        found = contestants.compete(contestant(folder, seconds=0.2, **settings))
        assert found.iterations * 4 / found.images_per_second >= 0.2
        assert found.precision == "fp32" and found.peak_bytes is None

    def test_more_iterations_follow_until_the_seconds_have_passed(self):
        calls = []

        def iterate():
            calls.append(None)
            time.sleep(0.002)

        steps, duration = contestants.run_for(iterate, 0.05, 2, torch.device("cpu"))
        assert steps == len(calls) and duration >= 0.05

    def test_a_failing_compiler_is_in_the_name_of_the_row(self, folder, monkeypatch):
        def no_compiler(*_, **__):
            raise OSError("no compiler here")

        monkeypatch.setattr(torch, "compile", no_compiler)
        found = contestants.compete(contestant(folder, form="both"))
        assert found.name.startswith("(b) this project, fp32, not compiled") and "no compiler here" in found.name
        assert found.name.endswith(", not captured: this needs a CUDA GPU")

    @pytest.mark.parametrize(
        "requested, said, form",
        [
            ((), [], "eager"),
            (("compiled", "captured"), ["compiled in 3 s", "captured in 1 s"], "compiled, captured"),
            (("compiled", "captured"), ["compiled in 3 s", "not captured: no"], "compiled, not captured: no"),
        ],
    )
    def test_a_row_says_what_was_measured(self, requested, said, form):
        assert contestants.describe_form(requested, said) == form

    @pytest.mark.slow
    def test_one_that_dies_is_one_line_and_the_others_go_on(self, folder, tmp_path, capsys, monkeypatch):
        script = tmp_path / "dies.py"  # the usual script's process ends as by the out-of-memory killer, the other hangs
        script.write_text(
            "import json, os, sys, time\n"
            "if json.loads(sys.argv[1])['workers'] == 1: os.kill(os.getpid(), 9)\n"
            "elif json.loads(sys.argv[1])['workers'] == 2: time.sleep(600)\n"
            "else: open(sys.argv[2], 'w').write(json.dumps({'name': '(b) this project', 'precision': 'fp32', "
            "'images_per_second': 2.0, 'iterations': 3, 'peak_bytes': 10**9}))"
        )
        monkeypatch.setattr(contestants, "__file__", str(script))
        monkeypatch.setattr(train_step, "measure_hardware", lambda args: {"device": "a CPU", "torch": "2"})
        flags = ["--data", str(folder), "--workers", "1", "2", "--repetitions", "2", "--limit", "2"]
        with pytest.raises(SystemExit) as stop:
            train_step.main([*flags, "--json", str(tmp_path / "table.json")])
        output, error = capsys.readouterr()
        assert stop.value.code == 1
        killed, hung = error.splitlines()
        assert killed.startswith("error: (a) usual script, fp32, 1 workers: ended by SIGKILL")
        assert hung.startswith("error: (a) usual script, fp32, 2 workers: stopped at its time limit")
        assert "| (b) this project | 2.0 (2.0 to 2.0) |" in output and "2 workers | failed: stopped" in output
        saved = json.loads((tmp_path / "table.json").read_text())
        assert saved["images_per_second"] == {"(b) this project": [2.0, 2.0]} and len(saved["failures"]) == 2


class TestCommands:
    def run(self, tmp_path, program, **limits):
        return commands.run([sys.executable, "-c", program], tmp_path / "log", **limits)

    def test_the_reason_is_the_last_line(self, tmp_path):
        outcome = self.run(tmp_path, "import sys; print('one'); sys.exit('error: two')")
        assert (outcome.code, outcome.timed_out, outcome.reason()) == (1, False, "two")

    def test_at_the_limit_a_command_may_save(self, tmp_path):
        program = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit('saved'))\ntime.sleep(600)"
        program = program.replace("time.sleep", "print('ready'); time.sleep")
        outcome = self.run(tmp_path, program, until=lambda: "ready" in (tmp_path / "log").read_text())
        assert outcome.satisfied and not outcome.timed_out and outcome.last_line == "saved"
        assert self.run(tmp_path, "import time; time.sleep(600)", seconds=0.1).timed_out

    @pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
    def test_a_command_ends_with_the_process_that_started_it(self, tmp_path):
        child = "import os, time; print(os.getpid()); time.sleep(600)"
        program = f"import sys, commands; commands.run([sys.executable, '-c', {child!r}], commands.Path('log'))"
        environment = os.environ | {"PYTHONPATH": str(ON_GPU.parent)}
        parent = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=environment)
        log = tmp_path / "log"
        while not (log.exists() and log.read_text().endswith("\n")) and parent.poll() is None:
            time.sleep(0.02)
        parent.kill()
        parent.wait()
        arguments, deadline = Path("/proc") / log.read_text().strip() / "cmdline", time.monotonic() + 30
        while arguments.exists() and arguments.read_bytes() and time.monotonic() < deadline:  # a zombie's is empty
            time.sleep(0.02)
        assert not (arguments.exists() and arguments.read_bytes())


class TestHistory:
    def test_the_first_interval_and_the_warm_up_do_not_count(self, tmp_path):
        entries = [{"kind": "train", "images_per_second": speed} for speed in (1, 10, 20, 40)]
        lines = [json.dumps(entry) for entry in [*entries[:2], {"kind": "test"}, *entries[2:]]]
        (tmp_path / "history.jsonl").write_text("\n".join(lines))
        assert run_history.training_seconds(tmp_path, images=20, warm_up=1.5) == [1.0, 0.5]

    def test_a_line_that_is_being_written_is_not_read(self, tmp_path):
        assert run_history.read_history(tmp_path) == []
        (tmp_path / "history.jsonl").write_text('{"kind": "tr')
        assert run_history.read_history(tmp_path) == []


@pytest.mark.slow
class TestWithoutResult:
    def test_a_run_that_fails_is_one_line(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(scaling, "describe_device", lambda settings: "a CPU")
        flags = ["--processes", "1", "--repetitions", "2", "--json", str(tmp_path / "scaling.json")]
        error = ends(capsys, scaling.main, [*flags, "--data", "nowhere", "--device", "cpu"], 1, "nowhere is not a")
        assert error.startswith("error: 1 processes: --data nowhere")
        saved = json.loads((tmp_path / "scaling.json").read_text())
        assert saved["images_per_second"] == {"1": []} and list(saved["failures"]) == ["1"]

    def test_without_the_device_nothing_is_stored(self, tmp_path, capsys):
        with pytest.raises(SystemExit, match="1"):
            on_gpu.main(["--out", str(tmp_path), "--device", "cuda:99"])
        assert "error: device 'cuda:99' does not work" in capsys.readouterr().err
        assert not (tmp_path / "report.json").exists()


class TestParts:
    def test_joined_parts_equal_the_file(self, tmp_path, capsys):
        file, content = tmp_path / "last.pt", os.urandom(1000)
        file.write_bytes(content)
        manifest = parts.split(file, tmp_path / "parts", part_bytes=300)
        assert [(tmp_path / "parts" / name).stat().st_size for name in manifest["parts"]] == [300, 300, 300, 100]
        on_gpu.main(["--join", str(tmp_path / "parts"), "--out", str(tmp_path / "joined")])
        assert (tmp_path / "joined" / "last.pt").read_bytes() == content
        assert "last.pt: SHA-256 as recorded" in capsys.readouterr().out

    @pytest.mark.parametrize("damage", [lambda part: part.unlink(), lambda part: part.write_bytes(b"other")])
    def test_a_damaged_part_leaves_no_file(self, tmp_path, damage, capsys):
        (tmp_path / "last.pt").write_bytes(bytes(1000))
        parts.split(tmp_path / "last.pt", tmp_path / "parts", part_bytes=300)
        damage(tmp_path / "parts" / "last.pt.part002")
        ends(capsys, on_gpu.main, ["--join", tmp_path / "parts", "--out", tmp_path / "joined"], 1, "parts")
        assert not list((tmp_path / "joined").iterdir())

    def test_a_smaller_file_leaves_no_old_parts(self, tmp_path):
        file = tmp_path / "last.pt"
        for size in (1000, 100):
            file.write_bytes(bytes(size))
            parts.split(file, tmp_path / "parts", part_bytes=300)
        assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["last.pt.part000", "parts.json"]


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

    def test_a_command_that_fails_fails_its_step(self, tmp_path):
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
def test_the_rehearsal_continues_after_a_kill(tmp_path, capsys):
    """Steps at tiny size, as a user runs them; the others are longer runs of the same scripts."""
    out, report = tmp_path / "out", tmp_path / "out" / "report.json"
    wanted = ["environment", "pictures", "losses", "throughput", "recipe", "checkpoint", "figures"]
    flags = ["--out", str(out), "--device", "cpu", "--tiny", "--steps", *wanted]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen([sys.executable, ON_GPU, *flags], stdout=log, stderr=log)
    while not report.exists() and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
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
