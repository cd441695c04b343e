"""What is visualised, and how: chosen at the command line, passed to every analysis and figure."""

from dataclasses import dataclass

from analysis.importance import METHODS
from network import STAGES

# the nine strongest that are not similar to each other; the nine strongest; nine drawn at random; every channel
CHANNEL_CHOICES = ("different", "strongest", "random", "all")
SCALES = ("tile", "channel")


@dataclass(frozen=True)
class Settings:
    """The choices a figure depends on.

    stages        names of network.STAGES
    channels      numbers, the same for every stage, or one of CHANNEL_CHOICES
    seed          of what is drawn at random: "random" channels, those of hierarchy, squares of correspondence
    top           images per channel
    rules         names of reverse_network.RULES
    unpool        one of reverse_network.UNPOOLINGS
    units         one of reverse_network.UNITS: what the top images are reconstructed from
    border        also search units that see the padding, at stages where enough units see none
    scale         one of SCALES: every tile of a reconstruction has its own color scale, or a channel's tiles share one
    limit         how many test images to search; None for all
    methods       names of analysis.importance.METHODS, to score and to draw
    score_images  how many test images to score importance maps on; None for the default of `spread_images`
    batch_size    images per forward pass
    classes       two classes to compare, by name or number; None for the two most probable
    image         the test image to explain, by its index; None for one with the median confidence of its class
    occluder      side of the square that hides part of an image, in pixels; None for 48 at 224, in proportion
    """

    stages: tuple[str, ...] = ("conv1", "conv5_x")
    channels: tuple[int, ...] | str = "different"
    seed: int = 0
    top: int = 9
    rules: tuple[str, ...] = ("deconvnet", "guided")
    unpool: str = "sum"
    units: str = "peak"
    border: bool = False
    scale: str = "tile"
    limit: int | None = None
    methods: tuple[str, ...] = tuple(METHODS)
    score_images: int | None = None
    batch_size: int = 16
    classes: tuple[str, str] | None = None
    image: int | None = None
    occluder: int | None = None

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
