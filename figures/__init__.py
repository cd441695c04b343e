"""All figures. A new one is a file of its own with a function decorated by `@register(...)`, and one import here."""

# isort: off
# The order in which figures are drawn, listed and reported.
from figures import training_curves
from figures import filters
from figures import single_image
from figures import classes
from figures import top9
from figures import hierarchy
from figures import rules
from figures import mirrors
from figures import sanity
from figures import faithfulness
from figures import attributions
from figures import evolution
from figures import invariance
from figures import correspondence
from figures import occlusion
from figures import why
from figures import inversion
from figures import synthesis
from figures import scores

# isort: on
from figures.registry import FIGURES

__all__ = ["FIGURES", "attributions", "classes", "correspondence", "evolution", "faithfulness", "filters", "hierarchy",
           "invariance", "inversion", "mirrors", "occlusion", "rules", "sanity", "scores", "single_image", "synthesis",
           "top9", "training_curves", "why"]  # fmt: skip
