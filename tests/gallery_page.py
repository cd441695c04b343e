"""The gallery that tests share: its classes and channels, its page as a parser reads it, cards of chosen content."""

import html.parser

from figures.gallery import PAGE, bars, sheet_size, sheet_windows, stage_content

NAMES = ["7", "a & b", 'ring <b>"x"']  # of classes: a number, and what HTML gives a meaning
CHANNELS = [0, 5, 10, 20, 30, 40]


class Page(html.parser.HTMLParser):
    """Elements with their attributes, the texts of table rows and of list items."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.rows, self.items, self.in_list = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")
        if tag == "li":
            self.items.append("")
            self.in_list = True

    def handle_endtag(self, tag):
        self.in_list &= tag != "ul"

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] == "td" and self.rows[-1]:
            self.rows[-1][-1] += data.strip()
        elif self.in_list:
            self.items[-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def card(channel, labels, peak=1.5, correct=None, means=(1.0, 2.0, 3.0), representative=None):
    """A channel whose images have these labels, in descending order of activation; the last does not excite it.

    representative: of its group; by default it is alone.
    """
    images = [
        {"rank": n, "index": n, "activation": peak, "label": label, "predicted": "dog", "correct": correct}
        for n, label in enumerate(labels, 1)
    ]
    images[-1]["activation"] = 0.0
    numbers = {
        "channel": channel,
        "peak": peak,
        "exciting": 1,
        "density": [0, 1],
        "class_means": means,
        "best_class": means.index(max(means)),
        "selectivity": 0.5,
        "class_weights": None,
        "neighbours": [],
        "representative": channel if representative is None else representative,
        "top": images,
        "strip": [],
    }
    return {"numbers": numbers, "file": "a.webp", "rules": {}}


def page(*cards):
    """The page of these cards of conv1."""
    channels = {card["numbers"]["channel"]: card["numbers"] for card in cards}
    members = {}
    for channel, numbers in channels.items():
        members.setdefault(numbers["representative"], []).append(channel)
    groups = [{"representative": first, "channels": channels} for first, channels in members.items()]
    stage = stage_content("conv1", {"dead": [], "groups": groups, "channels": channels}, cards)
    shared = {"images": 12, "classes": NAMES, "network_classes": NAMES, "what": "", "checkpoint": "", "accuracy": ""}
    windows = sheet_windows(1, 4)
    return PAGE.render(shared, stages=[stage], windows=windows, sheet=sheet_size(windows), bars=bars)
