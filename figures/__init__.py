"""All figures. A new one is a file of its own with a function decorated by `@register(...)`, and one import here."""

# In the order in which figures are drawn, listed and reported.
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
from figures.registry import FIGURES
