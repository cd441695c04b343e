"""What is visualised, and how: chosen at the command line, passed to every analysis and figure."""

from dataclasses import dataclass

from analysis.importance import METHODS
from network import STAGES

# the nine strongest that are not similar to each other; the nine strongest; nine drawn at random; every channel
CHANNEL_CHOICES = ("different", "strongest", "random", "all")
SCALES = ("tile", "channel")


@dataclass(frozen=True)
class Settings:
    """The choices a figure depends on."""

    stages: tuple[str, ...] = ("conv1", "conv5_x")  # of network.STAGES
    channels: tuple[int, ...] | str = "different"  # numbers, the same for every stage, or one of CHANNEL_CHOICES
    seed: int = 0  # of what is drawn at random: "random" channels, those of hierarchy, squares of correspondence
    top: int = 9  # images per channel
    rules: tuple[str, ...] = ("deconvnet", "guided")  # of reverse_network.RULES
    unpool: str = "sum"  # one of reverse_network.UNPOOLINGS
    units: str = "peak"  # one of reverse_network.UNITS: what the top images are reconstructed from
    border: bool = False  # also search units that see the padding, at stages where enough units see none
    scale: str = "tile"  # every tile of a reconstruction has its own color scale, or a "channel"'s tiles share one
    limit: int | None = None  # number of test images to search; None for all
    methods: tuple[str, ...] = tuple(METHODS)  # of analysis.importance, to score and to draw
    score_images: int | None = None  # number of images to score importance maps on; None for that of `spread_images`
    batch_size: int = 16  # images per forward pass
    classes: tuple[str, str] | None = None  # to compare, by name or number; None for the two most probable
    image: int | None = None  # index of the test image to explain; None for that of `median_image`
    occluder: int | None = None  # side in pixels of the square that hides a part; None for 48 at 224, in proportion

    @property
    def deepest_stage(self) -> str:
        """The stage furthest from the image."""
        return max(self.stages, key=STAGES.index)

    @property
    def main_rule(self) -> str:
        """The rule of figures that show one: guided, which shows the individual image, or the first of other rules."""
        return "guided" if "guided" in self.rules else self.rules[0]

    @property
    def channel_numbers(self) -> list[int] | None:
        """The channels that were asked for by number, if any."""
        return None if isinstance(self.channels, str) else list(self.channels)
