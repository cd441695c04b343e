"""Which channels to show, their strongest units, and one channel's top images with their reconstructions."""

from dataclasses import asdict, dataclass

from torch import Tensor

from analysis.activations import TopActivations, split_dead_channels, strongest_channels
from analysis.crops import crop, crop_boxes, crop_together, mean_correlation
from analysis.inspection import Inspection
from analysis.reconstruction import mirrors_by_rule, reconstruct
from analysis.settings import Settings
from network import CHANNELS
from reverse_network import ReverseResNet18


@dataclass(frozen=True)
class TopImage:
    """One of the images that excite a channel most.

    rank         from 1
    index        in the test split
    activation   of the channel's strongest unit, which is at (row, column) of the map
    label        name of the image's class; `predicted`: of the class the network predicts
    correct      whether they agree; None if the network does not know the label
    file         where the image comes from; None for named data sets
    """

    rank: int
    index: int
    activation: float
    row: int
    column: int
    label: str
    predicted: str
    correct: bool | None
    file: str | None


@dataclass(frozen=True)
class ChannelResult:
    """A channel's top images and what it saw in them.

    images           in descending order of activation
    patches          (n, 3, s, s) in 0..1: the images, cropped to the reconstructions' energy
    reconstructions  rule -> (n, 3, s, s), cropped alike
    scale            rule -> largest absolute value of these
    correlation      rule -> mean correlation of the reconstructions over all pairs; None if undefined
    """

    stage: str
    channel: int
    images: tuple[TopImage, ...]
    patches: Tensor
    reconstructions: dict[str, Tensor]
    scale: dict[str, float]
    correlation: dict[str, float | None]

    def entries(self) -> list[dict]:
        """The lines of top9.json, one per image."""
        channel = {"stage": self.stage, "channel": self.channel}
        return [
            channel | asdict(image) | {"scale": self.scale, "correlation": self.correlation} for image in self.images
        ]


@dataclass(frozen=True)
class StrongestUnits:
    """The strongest unit of each of some channels, over all searched images.

    images      (n,) int64: the images they are in, indices in the test split
    positions   (n,) int64: row * w + column in the map
    scores      (n,) activations
    """

    stage: str
    channels: list[int]
    images: Tensor
    positions: Tensor
    scores: Tensor


def chosen_channels(settings: Settings, top: TopActivations) -> list[int]:
    """The channels asked for by number, otherwise the nine with the highest activation."""
    return settings.channel_numbers or strongest_channels(top.scores[:, 0].cpu())


def channels_to_draw(settings: Settings, stage: str, top: TopActivations) -> tuple[list[int], list[int]]:
    """The living and the dead channels of a stage that have figures of their own."""
    channels = range(CHANNELS[stage]) if settings.channels == "all" else chosen_channels(settings, top)
    return split_dead_channels(top, channels)


def strongest_units(inspection: Inspection, stage: str, channels: list[int], top: TopActivations) -> StrongestUnits:
    """The units at the head of a search of the inspection's images, by its network or by another."""
    images = inspection.searched[top.indices[channels, 0].cpu()]
    return StrongestUnits(stage, channels, images, top.positions[channels, 0].cpu(), top.scores[channels, 0].cpu())


def reconstruct_units(
    inspection: Inspection, mirrors: dict[str, ReverseResNet18], units: StrongestUnits
) -> dict[str, Tensor]:
    """name of the mirror -> (n, 3, S, S): what each of these units of the inspection's network saw."""
    inputs = inspection.inputs(inspection.images[units.images])
    return reconstruct(inspection.network, mirrors, inputs, units.stage, units.channels, units.positions)


def inspect_channel(inspection: Inspection, settings: Settings, stage: str, channel: int) -> ChannelResult:
    """A channel's top images and their reconstructions by every chosen rule.

    Each rule's correlation is measured in crops around its own energy.
    """
    top = inspection.search.top[stage]
    positions, indices = top.positions[channel].cpu(), inspection.top_images(top, channel)
    images = inspection.images[indices]
    mirrors = mirrors_by_rule(inspection.network, settings.rules, settings.unpool)
    units = positions if settings.units == "peak" else "map"
    whole = reconstruct(
        inspection.network, mirrors, inspection.inputs(images), stage, channel, units, settings.batch_size
    )
    patches, reconstructions = crop_together(inspection.resized(images), whole)
    return ChannelResult(
        stage,
        channel,
        _top_images(inspection, top, channel),
        patches,
        reconstructions,
        scale={rule: each.abs().max().item() for rule, each in reconstructions.items()},
        correlation={rule: mean_correlation(crop(each, *crop_boxes([each]), fill=0.0)) for rule, each in whole.items()},
    )


def _top_images(inspection: Inspection, top: TopActivations, channel: int) -> tuple[TopImage, ...]:
    classes = inspection.metadata.classes
    predictions = inspection.search.logits[top.indices[channel].cpu()].argmax(1)
    found = []
    for rank, index in enumerate(inspection.top_images(top, channel).tolist()):
        row, column = divmod(top.positions[channel, rank].item(), top.map_size[1])
        label = inspection.label_names[inspection.labels[index]]
        predicted = classes[predictions[rank]]
        correct = predicted == label if label in classes else None
        file = str(inspection.files[index]) if inspection.files else None
        activation = top.scores[channel, rank].item()
        found.append(TopImage(rank + 1, index, activation, row, column, label, predicted, correct, file))
    return tuple(found)
