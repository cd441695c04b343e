"""The gallery that tests share: its classes and channels, its page as a parser reads it, cards of chosen content."""

import html.parser

import torch

from analysis import atlas
from analysis.channel_groups import ChannelGroups
from analysis.channels import ChannelResult, TopImage
from figures.gallery_card import Card, StagePage, article, section

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
    images = tuple(
        TopImage(
            n + 1, n, peak if n + 1 < len(labels) else 0.0, 0, 0, label, "dog", correct, None, False, (0, 0, 8, 8), {}
        )
        for n, label in enumerate(labels)
    )
    result = ChannelResult("conv1", channel, images, torch.zeros(len(labels), 3, 8, 8), {}, {})
    best = max(range(3), key=lambda n: means[n])
    first = channel if representative is None else representative
    profile = atlas.ChannelProfile("conv1", channel, peak, 1, (0, 1), means, best, 0.5, None, (), first)
    return Card(result, profile, (), "a.webp")


def stage_page(shown):
    """What these cards share."""
    channels = {each.profile.channel: each.profile for each in shown}
    members = {}
    for channel, profile in channels.items():
        members.setdefault(profile.representative, []).append(channel)
    groups = ChannelGroups(tuple(members), tuple(map(tuple, members.values())))
    return StagePage(atlas.StageProfile("conv1", channels, groups, ()), channels, NAMES, NAMES, 12)


def cards(*shown):
    """The section of these cards."""
    page = stage_page(shown)
    return section(page, [article(each, page) for each in shown])
