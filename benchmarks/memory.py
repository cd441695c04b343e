"""Memory of running processes, from Linux's /proc."""

from pathlib import Path


class Memory:
    """The largest memory of train.py's processes, and how they share the store.

    script, run: what their command lines hold, train.py and its --out
    """

    def __init__(self, script: Path, run: Path):
        self.script, self.run = script, run
        self.anonymous, self.mapped, self.share, self.processes = 0, 0, 0.0, 0

    def sample(self) -> None:
        """Reads /proc."""
        found = [process for process in Path("/proc").glob("[0-9]*") if self._is_ours(process)]
        self.processes = max(self.processes, len(found))
        for process in found:
            try:
                status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
                self.anonymous = max(self.anonymous, int(status["RssAnon"].split()[0]) * 1024)
                resident, proportional = store_pages((process / "smaps").read_text())
            except (OSError, KeyError, ValueError):  # it has ended
                continue
            if resident > self.mapped:
                self.mapped, self.share = resident, proportional / resident

    def _is_ours(self, process: Path) -> bool:
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return False
        return str(self.run) in words and str(self.script) in words and "torch.distributed.run" not in words


def store_pages(smaps: str) -> tuple[int, int]:
    """Bytes of train.npy in memory, and this process's proportional share of them, from /proc/PID/smaps."""
    resident = proportional = 0
    inside = False
    for line in smaps.splitlines():
        name, _, rest = line.partition(":")
        if "-" in name.split(" ")[0]:  # the header of a mapping: addresses, rights, file
            inside = line.rstrip().endswith("train.npy")
        elif inside and name == "Rss":
            resident += int(rest.split()[0]) * 1024
        elif inside and name == "Pss":
            proportional += int(rest.split()[0]) * 1024
    return resident, proportional
