"""The registry of figures: name -> how it is drawn, what it is, and how to read it.

A new figure is a file of its own with a function `draw_...(inspection, settings)`, and one entry here.
"""

from figures.classes import draw_classes
from figures.correspondence import draw_correspondence, table_in_words
from figures.entry import FigureEntry
from figures.evolution import draw_evolution
from figures.faithfulness import draw_faithfulness, scores_in_words
from figures.filters import draw_filters
from figures.hierarchy import draw_hierarchy
from figures.invariance import draw_invariance
from figures.mirrors import draw_mirrors
from figures.occlusion import draw_occlusion
from figures.rules import draw_branches, draw_rules
from figures.sanity import draw_sanity
from figures.scores import draw_confusion_matrix, draw_mistakes
from figures.single_image import draw_feature_maps, draw_input, draw_reconstructions
from figures.top9 import correlations_in_words, draw_top9
from figures.training_curves import draw_training_curves
from figures.why import decisions_in_words, draw_why
from network import STAGES

FIGURES = {
    "training_curves": FigureEntry(
        draw_training_curves,
        "Loss and accuracy during training",
        "A growing gap between the training and the test curve is overfitting.",
        needs="checkpoint",
        section="curves",
    ),
    "filters": FigureEntry(
        draw_filters,
        "Filters of the first layer",
        "Each tile is one filter: smooth tiles are tuned to edges and colors, noisy ones have learned little, "
        "grey ones have hardly any weight.",
        needs="checkpoint",
        section="filters",
    ),
    "input": FigureEntry(
        draw_input,
        "Input image and prediction",
        "The bars are the predicted probabilities of the ten most probable classes; the true class is blue.",
        needs="pictures",
        section="maps",
    ),
    "feature_maps": FigureEntry(
        draw_feature_maps,
        "Feature maps of one image",
        "Each tile is a channel's activation after the ReLU: bright where the channel found its pattern.",
        needs="pictures",
        section="maps",
    ),
    "reconstructions": FigureEntry(
        draw_reconstructions,
        "Strongest channels of one image",
        "Beside each feature map is the image structure that caused it, projected back to the pixels by each rule.",
        needs="pictures",
    ),
    "classes": FigureEntry(
        draw_classes,
        "Evidence for a class",
        "Each row is the evidence for one class; under the deconvnet rule, only the pooling switches depend on the "
        "image, because the starting signal is the same for every image.",
        needs="pictures",
    ),
    "top9": FigureEntry(
        draw_top9,
        "Images that excite a channel most",
        "What a channel's patches have in common is what it responds to; the reconstructions show which part of them.",
        words=correlations_in_words,
    ),
    "hierarchy": FigureEntry(
        draw_hierarchy,
        "From edges to objects: all five stages",
        "From row to row, units see more of the image and respond to more complex patterns: edges, textures, parts.",
        stages=STAGES,
    ),
    "rules": FigureEntry(
        draw_rules,
        "The same units under three ReLU rules",
        "The columns differ only in how the backward signal passes a ReLU; where they agree, the picture does not "
        "depend on that choice.",
        section="belief",
    ),
    "branches": FigureEntry(
        draw_branches,
        "Residual and shortcut branches",
        "The norms say how much of a picture came through the convolutions alone and through the shortcuts alone.",
        section="belief",
    ),
    "mirrors": FigureEntry(
        draw_mirrors,
        "The exact mirror beside faulty ones",
        "Each column has one mistake found in public code; the numbers say how far its pictures are from the exact "
        "ones, even where they look alike.",
        stages=STAGES,
        section="belief",
    ),
    "sanity": FigureEntry(
        draw_sanity,
        "Pictures from random weights",
        "A picture that stays the same, with a correlation near 1, as weights become random does not explain what the "
        "network learned.",
        section="belief",
    ),
    "faithfulness": FigureEntry(
        draw_faithfulness,
        "Do removed blocks matter as the picture says?",
        "The wider the gap between the curves, the better a map tells the blocks that the network needs from those "
        "that it does not; below, only what exceeds the square at the unit says more than where to look.",
        stages=STAGES,
        section="belief",
        words=scores_in_words,
    ),
    "evolution": FigureEntry(
        draw_evolution,
        "Channels during training",
        "A channel has settled once its strongest image and its picture stop changing; the curves say how early each "
        "stage does.",
        stages=STAGES,
        is_slow=True,
    ),
    "invariance": FigureEntry(
        draw_invariance,
        "Shifted, scaled and rotated images",
        "The lower and flatter a curve, the less the layer notices the change; the probability says whether the "
        "network still recognises the class.",
        is_slow=True,
    ),
    "correspondence": FigureEntry(
        draw_correspondence,
        "Corresponding parts in several images",
        "If the changes disagree less where the channel's parts are hidden than under random squares, the parts "
        "correspond.",
        stages=("conv4_x",),
        words=table_in_words,
    ),
    "occlusion": FigureEntry(
        draw_occlusion,
        "Which part of an image matters",
        "Where hiding a square lowers the map's sum, the map sees something there; where it lowers the probability or "
        "changes the class, the decision depends on it.",
        needs="both",
        stages=STAGES[-1:],
        is_slow=True,
    ),
    "why": FigureEntry(
        draw_why,
        "Why this class and not that one",
        "Each bar is what a group of similar channels adds to the difference of two logits; all groups and the bias "
        "add up to it exactly.",
        needs="both",
        stages=STAGES[-1:],
        words=decisions_in_words,
    ),
    "confusion_matrix": FigureEntry(
        draw_confusion_matrix,
        "Confusion matrix",
        "Each row is a true class, in percent of its images; what lies off the diagonal is misclassified.",
        section="results",
    ),
    "mistakes": FigureEntry(
        draw_mistakes,
        "Most confident mistakes",
        "Each image is captioned with its class and the prediction: look for wrong labels and for classes that look "
        "alike.",
        section="results",
    ),
}
