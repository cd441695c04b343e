"""Contestants that die or cannot compile, and a scaling run that fails, end in one line."""

import json
import time

import contestants
import pytest
import scaling
import torch
import train_step
from conftest import ends


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
        found = contestants.compete(contestant(folder, form="both", precision="fp32"))
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


@pytest.mark.slow
def test_a_scaling_run_that_fails_is_one_line(tmp_path, monkeypatch, capsys, forked):
    monkeypatch.setattr(scaling, "describe_device", lambda settings: "a CPU")
    flags = ["--processes", "1", "--repetitions", "2", "--json", str(tmp_path / "scaling.json")]
    error = ends(capsys, scaling.main, [*flags, "--data", "nowhere", "--device", "cpu"], 1, "nowhere is not a")
    assert error.startswith("error: 1 processes: --data nowhere")
    saved = json.loads((tmp_path / "scaling.json").read_text())
    assert saved["images_per_second"] == {"1": []} and list(saved["failures"]) == ["1"]
