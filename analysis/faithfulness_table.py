"""The numbers of faithfulness.json: means with 95 % intervals, over images and over channels."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from torch import Tensor

from analysis.bootstrap import Estimate, estimate
from analysis.faithfulness import STEPS, ClassCurves
from analysis.unit_faithfulness import TURNED, ChannelShares
from analysis.unit_shares import CHANGES


@dataclass(frozen=True)
class ClassScore:
    """One method's numbers over the images.

    score        mean over the images and steps of `least` - `most`
    over_random  mean over the images of the score's difference to that of the random map
    most, least  (STEPS,): the curves, means over the images
    """

    score: Estimate
    over_random: Estimate
    most: list[float]
    least: list[float]


def class_scores(curves: ClassCurves) -> dict[str, ClassScore]:
    """method -> its numbers, the highest score first."""
    random = curves.scores("random")
    found = {
        name: ClassScore(
            estimate(curves.scores(name)),
            estimate(curves.scores(name) - random),
            curves.most[name].double().mean(0).tolist(),
            curves.least[name].double().mean(0).tolist(),
        )
        for name in curves.most
    }
    return dict(sorted(found.items(), key=lambda item: -item[1].score.mean))


def json_content(curves: ClassCurves, scores: dict[str, ClassScore], stages: Iterable[ChannelShares]) -> dict:
    """The content of faithfulness.json."""
    methods = {
        name: {
            "score": found.score.mean,
            "low": found.score.low,
            "high": found.score.high,
            "over_random": asdict(found.over_random),
            "most": found.most,
            "least": found.least,
        }
        for name, found in scores.items()
    }
    return {
        "images": curves.images.tolist(),
        "block": curves.block,
        "steps": STEPS,
        "methods": methods,
        "channels": {found.stage: stage_content(found) for found in stages},
    }


def stage_content(found: ChannelShares) -> dict:
    """A stage's part of faithfulness.json: method -> numbers over the channels, and those of each channel."""
    content = {}
    for name, shares in found.shares.items():
        content[name] = estimates(shares)
        if name in TURNED:
            content[name]["minus_turned"] = estimates(shares - found.shares[TURNED[name]])
        content[name]["by_channel"] = {
            str(channel): by_change(each.tolist()) for channel, each in zip(found.channels, shares, strict=True)
        }
    return content


def estimates(shares: Tensor) -> dict[str, dict]:
    """(C, len(CHANGES)) -> "removed" or "kept" -> share of the blocks -> mean over the channels, with its interval."""
    return by_change(asdict(estimate(each)) for each in shares.T)


def by_change(values: Iterable) -> dict[str, dict]:
    """A value for each of CHANGES -> "removed" or "kept" -> share of the blocks, as text -> value."""
    content: dict[str, dict] = {}
    for (kind, share), value in zip(CHANGES, values, strict=True):
        content.setdefault(kind, {})[str(share)] = value
    return content
