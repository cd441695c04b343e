"""What index.html says of one channel and of one stage, as HTML: complete without a script."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape

from analysis.atlas import ChannelProfile, StageProfile, StripImage
from analysis.channels import ChannelResult, TopImage
from figures.style import describe_rule, format_two_digits

CLASSES_SHOWN = 10  # as bars; of more classes, the highest
DENSITY_HEIGHT = 10


@dataclass(frozen=True)
class Card:
    """A channel: its top images, its profile, the images at its quantiles, and the file with all their pictures."""

    result: ChannelResult
    profile: ChannelProfile
    strip: tuple[StripImage, ...]
    file: str


@dataclass(frozen=True)
class StagePage:
    """What all cards of a stage share.

    profile    of the stage
    shown      the channels that have a card
    labels     the data set's classes; `classes`: the network's
    searched   number of images
    """

    profile: StageProfile
    shown: Collection[int]
    labels: Sequence[str]
    classes: Sequence[str]
    searched: int


def article(card: Card, page: StagePage) -> str:
    """A channel's card, with a link to itself."""
    profile = card.profile
    stage, channel = profile.stage, profile.channel
    best = best_class(profile, page)
    words = escape(" ".join([stage, best, card.result.images[0].label]).lower())
    nearest = profile.neighbours[0].correlation if profile.neighbours else 0
    selectivity = format_two_digits(profile.selectivity)
    favourite = f"{escape(best)}, selectivity {selectivity}" if best else "no image has a class"
    return (
        f'<article id="{stage}-{channel}" tabindex=-1 aria-label="{stage}, channel {channel}" data-words="{words}" '
        f"data-channel={channel} data-peak={profile.peak:.4f} data-selectivity={profile.selectivity or 0:.4f} "
        f'data-nearest={nearest:.4f} data-group="{stage}-{profile.representative}">'
        f'<h3><a href="#{stage}-{channel}">{stage} {channel}</a> <small>{favourite} · highest {short(profile.peak)} · '
        f"excited by {percent(profile.exciting, page.searched)} of the images</small></h3>"
        f"<div class=parts>{pictures(card)}{density(card)}{class_bars(profile, page)}{weight_bars(profile, page)}"
        f"{similar(profile, page)}</div>{details(card)}</article>\n"
    )


def best_class(profile: ChannelProfile, page: StagePage) -> str:
    """The name of the class with the highest mean; "" if no image has a class."""
    return "" if profile.best_class is None else page.labels[profile.best_class]


def percent(count: int, total: int) -> str:
    """A share without decimals, but never 0 % or 100 % of something else."""
    share = 100 * count / total
    return "< 1 %" if 0 < share < 1 else "> 99 %" if 99 < share < 100 else f"{share:.0f} %"


def short(value: float | None) -> str:
    """A number with two decimals, or two digits below 0.1; a dash for None."""
    return "–" if value is None else f"{value:.2f}" if abs(value) >= 0.1 or not value else f"{value:.2g}"


def pictures(card: Card) -> str:
    """The patches, the reconstructions by each rule, and the strip: parts of one file, of which a browser shows one."""
    result = card.result
    where = f"{result.stage}, channel {result.channel}"
    exciting = [image for image in result.images if image.activation > 0]  # fewer where few images excite the channel
    classes = ", ".join(dict.fromkeys(image.label for image in exciting))
    alts = {"images": f"{where}: the {len(exciting)} strongest images ({classes})"}
    alts |= {rule: f"{where}: the same by {rule}" for rule in result.reconstructions}
    blocks = "".join(
        f"<figure class=b{n}>{picture(card, alt, focusable=not n)}<figcaption>{escape(name)}</figcaption></figure>"
        for n, (name, alt) in enumerate(alts.items())
    )
    alt = f"{where}: images at quantiles of its peaks, " + ", ".join(
        f"{image.percent} %: {image.label}" for image in card.strip
    )
    captions = "".join(
        f"<span>{image.percent} % <b>{short(image.activation)}</b><br>{escape(image.label)}</span>"
        for image in card.strip
    )
    return f"{blocks}<figure class=strip>{picture(card, alt)}<figcaption>{captions}</figcaption></figure>"


def picture(card: Card, alt: str, focusable: bool = False) -> str:
    """A window onto the file, which it links to; one of a card's links is enough for the keyboard."""
    return (
        f'<a class=window href="{card.file}"{"" if focusable else " tabindex=-1"}>'
        f'<img loading=lazy src="{card.file}" alt="{escape(alt)}"></a>'
    )


def density(card: Card) -> str:
    """How many images have which peak, with a mark at each quantile of the strip."""
    profile = card.profile
    counts, highest = profile.density, max(profile.density)
    steps = "".join(f"V{DENSITY_HEIGHT * (1 - count / highest):.2f}h1" for count in counts)
    shape = f"M0 {DENSITY_HEIGHT}{steps}V{DENSITY_HEIGHT}Z"
    marks = "".join(f"M{image.activation / profile.peak * len(counts):.2f} 0v{DENSITY_HEIGHT}" for image in card.strip)
    images = f"{profile.exciting:,} image{'s' * (profile.exciting > 1)}"
    return (
        f'<figure class=density><svg viewBox="0 0 {len(counts)} {DENSITY_HEIGHT}" preserveAspectRatio=none role=img '
        f'aria-label="density of the peaks, from 0 to {short(profile.peak)}"><path d="{shape}"/><path class=marks '
        f'd="{marks}"/></svg><figcaption><span>0</span><span>peaks of {images}</span><span>{short(profile.peak)}</span>'
        "</figcaption></figure>"
    )


def class_bars(profile: ChannelProfile, page: StagePage) -> str:
    """The mean peak by class, as bars with their numbers."""
    values = dict(zip(page.labels, profile.class_means, strict=True))
    largest = max((value for value in values.values() if value is not None), default=0) or 1
    if len(values) > CLASSES_SHOWN:
        values = dict(sorted(values.items(), key=lambda item: -(item[1] or 0))[:CLASSES_SHOWN])
    best = best_class(profile, page)
    rows = "".join(
        f"<li{' class=best' if name == best else ''} style=--v:{(value or 0) / largest:.3f}>{escape(name)} "
        f"<b>{short(value)}</b>"
        for name, value in values.items()
    )
    return f"<div class=bars><h4>mean peak by class</h4><ul>{rows}</ul></div>"


def weight_bars(profile: ChannelProfile, page: StagePage) -> str:
    """The weight of each class at conv5_x, as bars to either side; nothing at other stages."""
    if profile.class_weights is None:
        return ""
    values = dict(zip(page.classes, profile.class_weights, strict=True))
    largest = max(map(abs, values.values())) or 1
    if len(values) > CLASSES_SHOWN:
        values = dict(sorted(values.items(), key=lambda item: -abs(item[1]))[:CLASSES_SHOWN])
    rows = "".join(
        f"<li{' class=minus' if value < 0 else ''} style=--v:{abs(value) / largest:.3f}>{escape(name)} "
        f"<b>{value:.2f}</b>"
        for name, value in values.items()
    )
    return f"<div class=weights><h4>weight of each class</h4><ul>{rows}</ul></div>"


def similar(profile: ChannelProfile, page: StagePage) -> str:
    """The most similar other channels, linked where they are on the page, and the channel's group."""
    stage, channels = profile.stage, page.profile.channels
    rows = []
    for neighbour in profile.neighbours:
        other = neighbour.channel
        number = f'<a href="#{stage}-{other}">{other}</a>' if other in page.shown else str(other)
        name = escape(best_class(channels[other], page))
        correlation = neighbour.correlation
        rows.append(f"<li style=--v:{max(correlation, 0):.3f}><span>{number} {name}</span> <b>{correlation:.2f}</b>")
    groups = dict(zip(page.profile.groups.representatives, page.profile.groups.members, strict=True))
    members = groups[profile.representative]
    name = f"group of {profile.representative}"
    if sum(member in page.shown for member in members) > 1:  # the filter has it
        name = f'<a class=group href="?group={stage}-{profile.representative}">{name}</a>'
    return (
        f"<div class=similar><h4>similar channels</h4><ul>{''.join(rows)}</ul>"
        f"<p>{name}: {len(members)} channel{'s' * (len(members) > 1)}</p></div>"
    )


def details(card: Card) -> str:
    """A table of the channel's images, and the scales of its pictures."""
    exciting = [image for image in card.result.images if image.activation > 0]
    rows = [table_row(str(image.rank), image) for image in exciting]
    rows += [table_row(f"{image.percent} %", image) for image in card.strip]
    rules = "; ".join(f"{escape(rule)} {describe_rule(card.result, rule)}" for rule in card.result.reconstructions)
    return (
        "<details><summary>images</summary><table><tr><th>rank<th>activation<th>image<th>class<th>prediction"
        f"{''.join(rows)}</table><p>{rules}</p></details>"
    )


def table_row(rank: str, image: TopImage | StripImage) -> str:
    """A line of a channel's table."""
    return (
        f"<tr{' class=wrong' if image.correct is False else ''}><td>{rank}<td>{short(image.activation)}"
        f"<td>{image.index}<td>{escape(image.label)}<td>{escape(image.predicted)}"
    )


def section(page: StagePage, articles: Sequence[str]) -> str:
    """A stage: how similar its channels are, its dead channels, and the cards."""
    profile = page.profile
    notes = []
    if profile.channels:
        nearest = sorted(each.neighbours[0].correlation for each in profile.channels.values() if each.neighbours)
        groups = len(profile.groups.representatives)
        notes.append(f"{len(profile.channels)} living channels in {groups} group{'s' * (groups > 1)} of similar ones.")
        if nearest:
            middle = nearest[len(nearest) // 2]
            notes.append(f"The most similar other channel of the median channel correlates at {middle:.2f}.")
    if profile.dead:
        notes.append(f"No image excites channel {', '.join(map(str, profile.dead))}.")
    stage = profile.stage
    return (
        f'<section aria-labelledby="{stage}"><h2 id="{stage}">{stage}: {len(articles)} channels</h2>'
        f"<p>{' '.join(notes)}</p>\n{''.join(articles)}</section>\n"
    )


def group_options(pages: Sequence[StagePage]) -> str:
    """The groups of similar channels that have more than one card, for the filter; the largest first."""
    text = ""
    for page in pages:
        groups = page.profile.groups
        sizes = {
            first: sum(member in page.shown for member in members)
            for first, members in zip(groups.representatives, groups.members, strict=True)
        }
        options = "".join(
            f'<option value="{page.profile.stage}-{first}">{page.profile.stage}, group of {first} ({count})'
            for first, count in sorted(sizes.items(), key=lambda item: -item[1])
            if count > 1
        )
        text += f'<optgroup label="{page.profile.stage}">{options}</optgroup>' if options else ""
    return text
