"""Figures that put the mirror beside what it is not: other rules, one branch, another unpooling, random weights."""

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from analysis.activations import cut, search, windows
from analysis.inspection import Subject, to_array
from dataset.preprocess import resize
from figures import drawing
from figures.style import number, two_digits
from network import STAGES, ResNet18
from reverse_network import BRANCHES, RULES, UNPOOLINGS, ReverseResNet18, isolate
from runtime import checkpoint

CHANNELS = 6  # rows of a comparison
GREY = "grey: zero, or beyond the image"
PARTS = dict(zip(STAGES, (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)), strict=True))


class Case:
    """The strongest unit of each of a stage's strongest channels, in its strongest image: one row each.

    Of the subject's network, or of another, searched by itself, for the same channels.
    """

    def __init__(self, subject: Subject, stage: str, network: ResNet18 | None = None):
        self.subject, self.stage, self.network = subject, stage, network or subject.network
        top = subject.top[stage]
        self.channels = subject.alive_and_dead(stage, subject.chosen(stage))[0][:CHANNELS]
        if network:
            top = search(network, subject.batches("search"), [stage], 1)[0][stage]
        self.positions = top.positions[self.channels, 0]
        indices = subject.searched[top.indices[self.channels, 0].cpu()]
        self.images = subject.test[0][indices]
        self.numbers = list(zip(indices.tolist(), top.scores[self.channels, 0].tolist(), strict=True))
        self.captions = [
            f"channel {channel}\nimage {index}\nactivation {score:.2f}"
            for channel, (index, score) in zip(self.channels, self.numbers, strict=True)
        ]

    @torch.inference_mode()
    def reconstruct(self, mirror: ReverseResNet18) -> Tensor:
        """(rows, 3, S, S)."""
        trace = self.network.trace(self.subject.preprocess(self.images.to(self.subject.device)), self.stage)
        return mirror(isolate(trace.features[self.stage], self.channels, self.positions), self.stage, trace).cpu()

    def cut(self, columns: dict[str, Tensor]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The patches and every column's pictures, all cut to the same windows."""
        side, corners = windows(list(columns.values()))
        patches = cut(resize(self.images, self.subject.image_size), side, corners, outside=0.5)
        return to_array(patches), {name: to_array(cut(each, side, corners, 0.0)) for name, each in columns.items()}


def above_the_pooling(subject: Subject, name: str) -> Case | None:
    """The case of the highest stage asked for; None, and a word about it, when that is conv1, where nothing differs."""
    stage = max(subject.args.stages, key=STAGES.index)
    if stage == STAGES[0]:
        print(f"{name}: left out, it needs one of the --stages {' '.join(STAGES[1:])}")
        return None
    return excited(Case(subject, stage), name)


def excited(case: Case, name: str) -> Case | None:
    """The case; None, and a word about it, when it has no rows."""
    if case.channels:
        return case
    print(f"{name}: left out, no image excites the channels asked for")
    return None


def draw_rules(subject: Subject) -> Iterator[tuple[Path, Figure]]:
    """The same units by all three rules."""
    if case := above_the_pooling(subject, "rules"):
        pictures = {
            rule: case.reconstruct(ReverseResNet18(subject.network, rule, subject.args.unpool))
            for rule in reversed(RULES)
        }
        patches, columns = case.cut(pictures)
        title = f"{case.stage}: one unit, three ways back through a ReLU{subject.unpooling}"
        note = f"below: each tile's own scale; {GREY}"
        yield Path("rules"), drawing.comparison(patches, columns, case.captions, scales_below(columns), title, note)


def draw_branches(subject: Subject) -> Iterator[tuple[Path, Figure]]:
    """The same units through both branches of every block, through the residual alone, through the shortcut alone."""
    if case := above_the_pooling(subject, "branches"):
        rule = subject.args.rules[0]
        pictures = {
            branches: case.reconstruct(ReverseResNet18(subject.network, rule, subject.args.unpool, branches))
            for branches in BRANCHES
        }
        patches, columns = case.cut(pictures)
        norms = {name: each.flatten(1).norm(dim=1) for name, each in pictures.items()}
        below = scales_below(columns)
        for name in list(columns)[1:]:
            shares = [number(share, ".2g") for share in ratios(norms[name], norms["both"])]
            below[name] = [f"{scale}, norm {share}" for scale, share in zip(below[name], shares, strict=True)]
        title = f"{case.stage}, {rule}: one unit, through both branches of every block or one alone{subject.unpooling}"
        note = "below: each tile's own scale, and its norm over that of both (with all mixed ways)"
        yield Path("branches"), drawing.comparison(patches, columns, case.captions, below, title, note, GREY)


def draw_unpooling(subject: Subject) -> Iterator[tuple[Path, Figure]]:
    """The exact adjoint of the overlapping pooling beside the unpooling that overwrites."""
    if case := above_the_pooling(subject, "unpooling"):
        rule = subject.args.rules[0]
        pictures = {how: case.reconstruct(ReverseResNet18(subject.network, rule, how)) for how in UNPOOLINGS}
        pictures["difference"] = pictures["overwrite"] - pictures["sum"]
        norms = {name: each.flatten(1).norm(dim=1) for name, each in pictures.items()}
        errors = ratios(norms["difference"], norms["sum"])
        patches, columns = case.cut(pictures)
        limits = np.abs(columns["sum"]).max((1, 2, 3), initial=0)
        below = {name: [f"±{limit:.2g}" for limit in limits] for name in columns}
        below["difference"] = [f"error {number(error, '.0%')}" for error in errors]
        known = [error for error in errors if error is not None]
        title = f"{case.stage}, {rule}: unpooling that sums what meets, or overwrites it (F.max_unpool2d)"
        mean = number(np.mean(known) if known else None, ".0%")
        note = f"mean error {mean} of the norm; each row on one scale; {GREY}"
        figure = drawing.comparison(patches, columns, case.captions, below, title, note, limits=limits)
        yield Path("unpooling"), figure


def draw_evolution(subject: Subject) -> Iterator[tuple[Path, Figure]]:
    """A few channels' strongest reconstructions over the epochs (Zeiler and Fergus' figure 4)."""
    stage, rule = max(subject.args.stages, key=STAGES.index), subject.args.rules[0]
    path = Path(subject.args.ckpt)
    folder = path.parent if path.name in ("model.pt", "last.pt") else path
    if not (kept := checkpoint.snapshots(folder)):
        print("evolution: left out, it needs a run of train.py --snapshots 1 2 5 10 20 40")
        return
    if not (now := excited(Case(subject, stage), "evolution")):
        return
    pictures, below = {}, {}
    last = subject.info.result.get("epoch")  # of a finished run
    files = {f"epoch {epoch}": file for epoch, file in kept.items() if epoch != last}
    for name, file in {**files, f"epoch {last}" if last else "now": None}.items():
        case = now
        if file:
            network = checkpoint.load_network(file)[0].to(subject.device, memory_format=torch.channels_last)
            case = Case(subject, stage, network)
        drawn = case.reconstruct(ReverseResNet18(case.network, rule, subject.args.unpool))
        pictures[name] = to_array(drawn)
        below[name] = [f"image {index}\n{score:.2f}" for index, score in case.numbers]
    shown = to_array(resize(now.images, subject.image_size))
    searched = f"{len(subject.searched):,} test images"
    title = f"{stage}, {rule}{subject.unpooling}: a channel's strongest unit in {searched}, by epoch"
    note = "below: its image and activation; each tile on a scale of its own around grey; left: the image of the last"
    captions = [f"channel {channel}" for channel in now.channels]
    yield Path("evolution"), drawing.comparison(shown, pictures, captions, below, title, note)


def draw_sanity(subject: Subject) -> Iterator[tuple[Path, Figure]]:
    """What is left of a picture when the weights are replaced by random ones from the top down (arXiv:1810.03292)."""
    if case := above_the_pooling(subject, "sanity"):
        case.channels, images = case.channels[:2], case.images[:2]
        columns: dict[str, list[np.ndarray]] = {}
        for name, network in randomised(subject.network, case.stage):
            with torch.inference_mode():
                trace = network.trace(subject.preprocess(images.to(subject.device)), case.stage)
                signal = isolate(trace.features[case.stage], case.channels)
                for rule in reversed(RULES):
                    drawn = ReverseResNet18(network, rule, subject.args.unpool)(signal, case.stage, trace)
                    columns.setdefault(name, []).extend(to_array(drawn.cpu().contiguous()))
        shown = resize(images, subject.image_size)
        columns["edges"] = [edge for _ in RULES for edge in to_array(edges(shown))]
        below = {
            name: [
                two_digits(rank_correlation(strength(a), strength(b)))
                for a, b in zip(columns["trained"], each, strict=True)
            ]
            for name, each in columns.items()
        }
        captions = [f"{rule}\nchannel {channel}" for rule in reversed(RULES) for channel in case.channels]
        patches = np.concatenate([to_array(shown)] * len(RULES))
        title = f"{case.stage}, whole maps{subject.unpooling}: weights made random from the top down, and Sobel's edges"
        note = "below: Spearman's rank correlation of the absolute values with those of the trained network"
        arrays = {name: np.stack(each) for name, each in columns.items()}
        yield Path("sanity"), drawing.comparison(patches, arrays, captions, below, title, note)


def randomised(network: ResNet18, stage: str) -> Iterator[tuple[str, ResNet18]]:
    """The network as trained, then a copy in which stage after stage, from `stage` down, is as before any training."""
    yield "trained", network
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        fresh = ResNet18(network.fc.out_features)
    network = copy.deepcopy(network)
    for below in reversed(STAGES[: STAGES.index(stage) + 1]):
        for part in PARTS[below]:
            getattr(network, part).load_state_dict(getattr(fresh, part).state_dict())
        yield f"{below} random" if below == stage else f"+ {below}", network


def edges(images: Tensor) -> Tensor:
    """Sobel's edges of the grey image: (N, 3, H, W) in 0..1 -> the same shape, three equal channels."""
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    kernels = torch.stack([across, across.T])[:, None]
    grey = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    return F.conv2d(grey, kernels).norm(dim=1, keepdim=True).expand(-1, 3, -1, -1)


def strength(picture: np.ndarray) -> np.ndarray:
    """How much a picture (H, W, 3) has at each pixel: the sum of its absolute values over the colours."""
    return np.abs(picture).sum(-1)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's rank correlation of two arrays of a size, equals sharing their mean rank; None when one is flat."""
    ranks = []
    for values in (a, b):
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((counts.cumsum() - (counts - 1) / 2)[place.reshape(-1)])
    if any(np.ptp(rank) == 0 for rank in ranks):
        return None
    return float(np.corrcoef(ranks)[0, 1])


def ratios(values: Tensor, wholes: Tensor) -> list[float | None]:
    """Each value as a share of its whole, None where that is zero."""
    return [value / whole if whole else None for value, whole in zip(values.tolist(), wholes.tolist(), strict=True)]


def scales_below(columns: dict[str, np.ndarray]) -> dict[str, list[str]]:
    """The half-width of each tile's own scale, as its caption."""
    return {name: [f"±{np.abs(tile).max(initial=0):.2g}" for tile in each] for name, each in columns.items()}
