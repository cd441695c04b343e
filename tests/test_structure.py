"""The layout: which Python files there are, and that imports go one way. Every tracked file is parsed."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = {"train", "visualizer"}
PACKAGES = {"training", "analysis", "figures", "dataset", "runtime"}
OURS = SCRIPTS | PACKAGES | {"network", "reverse_network", "hubconf", "benchmarks", "tests"}

# module or package -> what it may import, itself aside: a module, a package with all its modules, or one of them
ALLOWED = {
    "network": set(),
    "hubconf": {"network"},
    "reverse_network": {"network"},
    "runtime": {"network"},
    "dataset": {"runtime", "network"},
    "training": {"dataset", "runtime", "network"},
    "analysis": {"reverse_network", "dataset", "runtime", "network"},
    "figures": {"analysis", "reverse_network", "dataset", "runtime", "network"},
    "train": {"training", "figures.training_curves", "figures.style", "dataset", "runtime", "network"},
    "visualizer": {"figures", "analysis", "reverse_network", "dataset", "runtime", "network"},
    "benchmarks": OURS,
    "tests": OURS | {"conftest"},
}


def tracked_files() -> list[str]:
    """Paths of the tracked Python files, relative to the root."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    output = subprocess.check_output(["git", "-c", "safe.directory=*", "ls-files", "*.py"], cwd=ROOT, text=True)
    return [path for path in output.splitlines() if (ROOT / path).exists()]


def violations(path: str, source: str) -> list[str]:
    """Imports by the file at `path`, wherever the statement is, against ALLOWED; argparse where it does not belong."""
    importer, names, wrong = Path(path).parts[0].removesuffix(".py"), set(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):  # relative ones begin with a dot
            names |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    for name in sorted(names):
        top, *rest = name.split(".")
        if top == "argparse":
            is_wrong = importer not in SCRIPTS | {"benchmarks"} and path != "runtime/command_line.py"
        else:
            is_wrong = top in OURS | {""} and not {top, ".".join([top, *rest[:1]])} & (ALLOWED[importer] | {importer})
        wrong += [f"{path} imports {name}"] * is_wrong
    return wrong


@pytest.mark.parametrize(
    "path, source, found",
    [
        ("network.py", "import reverse_network", 1),
        ("analysis/crops.py", "def late():\n    from figures.style import save", 1),
        ("train.py", "from figures import gallery, style", 1),
        ("figures/top9.py", "from .style import save", 1),
        ("figures/top9.py", "from argparse import Namespace", 1),
        ("train.py", "import argparse\nfrom figures import style, training_curves\nimport training.run", 0),
    ],
)
def test_violations_are_found_and_nothing_else(path, source, found):
    assert len(violations(path, source)) == found


def test_imports_go_one_way():
    found = [violations(path, (ROOT / path).read_text(encoding="utf-8")) for path in tracked_files()]
    assert len(found) > 30 and sum(found, []) == []


def test_the_files():
    """The root holds the scripts, the networks and hubconf; packages are one level deep; no file of odds and ends."""
    paths = list(map(Path, tracked_files()))
    root = {"train.py", "visualizer.py", "network.py", "reverse_network.py", "hubconf.py"}
    assert {path.name for path in paths if path.parent == Path()} == root
    assert {str(path.parent) for path in paths} == PACKAGES | {".", "benchmarks", "tests"}
    assert not {path.stem for path in paths} & {"util", "utils", "helper", "helpers", "common", "misc"}
