"""Commands with a time limit, the lines of a run, and a checkpoint in parts."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import commands
import on_gpu
import parts
import pytest
import run_history
from conftest import ends


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
        environment = os.environ | {"PYTHONPATH": str(Path(commands.__file__).parent)}
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
