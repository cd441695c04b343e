"""What tests of HTML pages share: a parser, a browser, and cards of chosen content for the gallery's page."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

from figures.gallery import PAGE, bars, sheet_size, sheet_windows, stage_content

NAMES = ["7", "a & b", 'ring <b>"x"']  # of classes: a number, and what HTML gives a meaning
CHANNELS = [0, 5, 10, 20, 30, 40]
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Elements with their attributes, all text, and the texts of table cells by row and of list items."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(source)
        rows, items = source.split("<tr")[1:], re.findall(r"<li[^>]*>(.*?)(?=<li|</ul>)", source, re.DOTALL)
        self.rows = [[html.unescape(cell).strip() for cell in re.findall("<td[^>]*>([^<]*)", row)] for row in rows]
        self.items = [html.unescape(re.sub("<[^>]*>", "", item)) for item in items]

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def title_in_browser(file, tmp_path, query=""):
    """The page's title, which is JSON, when the browser has loaded the page and run its scripts."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--dump-dom",
             "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'chrome'}",
             "--allow-file-access-from-files", "--window-size=1300,900", "--virtual-time-budget=3000"]  # fmt: skip
    command = [BROWSER, *flags, f"file://{file}{query}"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", text, re.DOTALL)[1]))


def on_a_phone(file, tmp_path, script):
    """[the width of the page, what the script returns] in a frame of 420 pixels; `page` is its document."""
    (tmp_path / "frame.html").write_text(  # a window of its own has at least 500 pixels
        "<title></title><iframe width=420 height=900 style='border: 0'></iframe><script>"
        "const frame = document.querySelector('iframe'); frame.onload = () => setTimeout(() => {"
        f"const page = frame.contentDocument, found = (() => {{ {script} }})();"
        "document.title = JSON.stringify([page.documentElement.scrollWidth, found]); }, 100);"
        f"frame.src = 'file://{file}'</script>"
    )
    return title_in_browser(tmp_path / "frame.html", tmp_path)


def card(channel, labels, peak=1.5, correct=None, means=(1.0, 2.0, 3.0), representative=None):
    """A channel whose images have these labels, the last of which does not excite it; by default alone in its group."""
    images = [
        {"rank": n, "index": n, "activation": peak, "label": label, "predicted": "dog", "correct": correct}
        for n, label in enumerate(labels, 1)
    ]
    images[-1]["activation"] = 0.0
    numbers = {"channel": channel, "peak": peak, "exciting": 1, "density": [0, 1], "class_means": means,
               "best_class": means.index(max(means)), "selectivity": 0.5, "class_weights": None, "neighbours": [],
               "representative": channel if representative is None else representative,
               "top": images, "strip": []}  # fmt: skip
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
