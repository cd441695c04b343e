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
    command = ["git", "-c", "safe.directory=*", "ls-files", "*.py"]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for path in output.splitlines() if (ROOT / path).exists()]


def imported_names(source: str) -> set[str]:
    """Dotted names of everything a file imports, wherever the statement is; relative imports begin with a dot."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def violations(path: str, source: str) -> list[str]:
    """Imports by the file at `path` that go against ALLOWED, and argparse where it does not belong."""
    importer = Path(path).parts[0].removesuffix(".py")
    names = imported_names(source)
    found = [name for name in names if name.startswith(".")]
    for name in names:
        parts = name.split(".")
        allowed = {parts[0], ".".join(parts[:2])} & (ALLOWED[importer] | {importer})
        if parts[0] in OURS and not allowed:
            found.append(name)
        if parts[0] == "argparse" and importer not in SCRIPTS | {"benchmarks"} and path != "runtime/command_line.py":
            found.append(name)
    return sorted(f"{path} imports {name}" for name in found)


@pytest.mark.parametrize(
    "path, source",
    [
        ("network.py", "import reverse_network"),
        ("reverse_network.py", "from dataset.shapes import CLASSES"),
        ("runtime/checkpoint.py", "from dataset import sources"),
        ("dataset/batches.py", "import training.step"),
        ("training/run.py", "from analysis.crops import crop_boxes"),
        ("training/run.py", "from figures import training_curves"),
        ("training/export.py", "import train"),
        ("analysis/crops.py", "from training.step import TrainStep"),
        ("analysis/crops.py", "def late():\n    from figures.style import save"),
        ("figures/top9.py", "from visualizer import main"),
        ("train.py", "import visualizer"),
        ("train.py", "from figures import gallery, style"),
        ("train.py", "import figures"),
        ("visualizer.py", "from training.evaluation import evaluate"),
        ("hubconf.py", "from runtime import checkpoint"),
        ("figures/top9.py", "from .style import save"),
        ("analysis/inspection.py", "import argparse"),
        ("figures/top9.py", "from argparse import Namespace"),
        ("network.py", "import tests.conftest"),
    ],
)
def test_each_kind_of_violation_is_found(path, source):
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    "path, source",
    [
        ("train.py", "import argparse\nfrom figures import style, training_curves\nimport training.run"),
        ("visualizer.py", "from figures import gallery\nfrom analysis.crops import crop_boxes"),
        ("figures/top9.py", "from figures import style\nfrom analysis import crops\nimport numpy.random"),
        ("training/run.py", "from network import ResNet18\nfrom training.step import TrainStep"),
        ("runtime/command_line.py", "import argparse"),
        ("benchmarks/recipe.py", "import argparse\nimport train"),
    ],
)
def test_what_is_allowed_is_not_reported(path, source):
    assert violations(path, source) == []


def test_imports_go_one_way():
    found = [violations(path, (ROOT / path).read_text(encoding="utf-8")) for path in tracked_files()]
    assert len(found) > 30 and sum(found, []) == []


def test_the_root_holds_the_scripts_the_networks_and_hubconf():
    root = {path for path in tracked_files() if "/" not in path}
    assert root == {"train.py", "visualizer.py", "network.py", "reverse_network.py", "hubconf.py"}


def test_packages_are_one_level_deep():
    paths = [Path(path).parts for path in tracked_files()]
    assert [path for path in paths if len(path) > 2] == []
    assert {path[0] for path in paths if len(path) == 2} == PACKAGES | {"benchmarks", "tests"}


def test_no_file_of_odds_and_ends():
    names = {"util.py", "utils.py", "helper.py", "helpers.py", "common.py", "misc.py"}
    assert [path for path in tracked_files() if Path(path).name in names] == []
