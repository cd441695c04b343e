"""The gallery's page as a browser runs it: search, order, links, keys, and how it fits a phone.

Scripts of the tests run after the page's own; they leave JSON in the page's title.
"""

import json

import pytest
from gallery_page import BROWSER, NAMES, card, page, title_in_browser

from figures.gallery import sheet_size, sheet_windows
from network import STAGES

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs chromium")]


def run(folder, tmp_path, script, query=""):
    """What the script returns. `shown()` are the ids of the articles that are not hidden."""
    text = (folder / "index.html").read_text()
    prelude = (
        "const shown = () => [...document.querySelectorAll('article:not([hidden])')].map(each => each.id);"
        "const set = (id, value) => { document.getElementById(id).value = value;"
        " document.querySelector('form').dispatchEvent(new Event('input')); };"
        "const count = () => document.querySelector('output').textContent;"
        "const press = key => document.activeElement.dispatchEvent("
        "new KeyboardEvent('keydown', {key, bubbles: true}));"
    )
    code = f"(async () => {{ {prelude} {script} }})().then(found => document.title = JSON.stringify(found))"
    (folder / "scripted.html").write_text(text.replace("</html>", f"<script>{code}</script></html>"))
    return title_in_browser(folder / "scripted.html", tmp_path, query)


def test_search_by_number_and_activation(gallery, gallery_html, tmp_path):
    articles = gallery_html.all("article")
    least = sorted(float(article["data-peak"]) for article in articles)[-3] - 1e-3
    script = (
        "const results = [[shown(), count()]];"
        "set('words', '10'); results.push([shown(), count()]); set('words', '');"
        f"set('from', {least}); results.push([shown(), count()]);"
        "document.querySelectorAll('#conv1 ~ article').forEach(article => article.remove()); set('from', '');"
        "return [results, [...document.querySelectorAll('section')].filter(section => !section.hidden).length];"
    )
    expected = [
        [article["id"] for article in articles],
        [article["id"] for article in articles if article["data-channel"] == "10"],
        [article["id"] for article in articles if float(article["data-peak"]) >= least],
    ]
    counts = [f"{len(ids)} of {len(articles)} channels" for ids in expected]
    results, sections = run(gallery, tmp_path, script)
    assert results == [list(pair) for pair in zip(expected, counts, strict=True)]
    assert sections == len(STAGES)  # one without living channels says so


def test_search_by_stage_and_class(tmp_path):
    best = {10: (1.0, 2.0, 3.0), 20: (1.0, 3.0, 2.0), 25: (3.0, 1.0, 2.0)}
    shown = [card(channel, ["x", "y"], means=means) for channel, means in best.items()]
    shown.append(card(30, [NAMES[2], "x"], means=best[20]))
    (tmp_path / "index.html").write_text(page(*shown))
    queries = {"ring": [10, 30], "&": [20, 30], "7": [25], "CONV1 ring": [10, 30], "conv2": []}
    script = f"return {json.dumps(list(queries))}.map(words => {{ set('words', words); return shown(); }});"
    expected = [[f"conv1-{n}" for n in channels] for channels in queries.values()]
    assert run(tmp_path, tmp_path, script) == expected


def test_the_order(gallery, gallery_json, tmp_path):
    keys = {
        "selectivity": lambda entry: -entry["selectivity"],
        "peak": lambda entry: -entry["peak"],
        "unlike": lambda entry: entry["neighbours"][0]["correlation"],
        "": lambda entry: entry["channel"],
    }
    script = f"return {json.dumps(list(keys))}.map(order => {{ set('sort', order); return shown(); }});"
    stages = gallery_json["stages"]
    entries = {f"{stage}-{entry['channel']}": entry for stage in stages for entry in stages[stage]["channels"]}
    for shown, key in zip(run(gallery, tmp_path, script), keys.values(), strict=True):
        assert sorted(shown) == sorted(entries)
        ranks = [(STAGES.index(name.split("-")[0]), key(entries[name])) for name in shown]
        assert all(
            a[0] < b[0] or (a[0] == b[0] and a[1] <= b[1] + 1e-4) for a, b in zip(ranks, ranks[1:], strict=False)
        )


def test_groups(tmp_path):
    """The filter has those with several cards, the largest first; so has the link on a card."""
    members = {30: [30, 31, 32], 3: [3, 8], 9: [9]}
    shown = [card(channel, ["x", "y"], representative=first) for first in members for channel in members[first]]
    (tmp_path / "index.html").write_text(page(*shown))
    script = (
        "const groups = [...document.querySelectorAll('#group option')].map(option => option.value);"
        "const results = groups.map(group => { set('group', group); return shown(); }); set('group', '');"
        "document.querySelector('#conv1-8 a.group').click(); results.push(shown());"
        "return [groups, results, document.querySelector('#conv1-9 a.group')];"
    )
    groups, (everything, *filtered), link = run(tmp_path, tmp_path, script)
    assert groups == ["", "conv1-30", "conv1-3"] and len(everything) == 6 and link is None
    assert filtered == [[f"conv1-{channel}" for channel in members[first]] for first in (30, 3, 3)]


def test_the_address_holds_the_search(gallery, gallery_html, tmp_path):
    script = "return [shown(), document.getElementById('sort').value];"
    expected = [article["id"] for article in gallery_html.all("article") if article["data-channel"] == "10"]
    assert run(gallery, tmp_path, script, "?words=10&sort=peak") == [expected, "peak"]


def test_the_keys(gallery, gallery_html, tmp_path):
    """They follow the order and the search, and can be switched off."""
    ids = [article["id"] for article in gallery_html.all("article")]
    expected = {"j": ids[0], "jjj": ids[2], "jjk": ids[0], "k": ids[0], "j/": "words", "/j": "words"}
    script = (
        "const type = keys => { document.activeElement.blur(); for (const key of keys) press(key);"
        " return document.activeElement.id; };"
        f"const on = {json.dumps(list(expected))}.map(type);"
        "document.getElementById('keys').click(); const off = type('j') + type('/');"
        "document.getElementById('keys').click(); set('sort', 'peak'); return [on, off, type('j') === shown()[0]];"
    )
    assert run(gallery, tmp_path, script) == [list(expected.values()), "", True]


@pytest.mark.parametrize("query", ["", "?words=nothing"])
def test_a_link_leads_to_its_channel_even_if_the_search_hides_it(gallery, gallery_html, tmp_path, query):
    last = gallery_html.all("article")[-1]["id"]
    script = (
        "await new Promise(done => setTimeout(done, 1000));"
        f"const box = document.getElementById('{last}').getBoundingClientRect();"
        "return scrollY > 0 && 0 <= box.top && box.top < innerHeight && box.height > 0;"
    )
    assert run(gallery, tmp_path, script, f"{query}#{last}")


def test_a_phone_does_not_scroll_sideways_and_windows_show_their_part(gallery, tmp_path):
    script = (
        "const box = each => each.getBoundingClientRect();"
        "const windows = [...document.querySelector('article').querySelectorAll('.window')].map(each => {"
        " const own = box(each), image = box(each.firstChild);"
        " return [own.left - image.left, own.top - image.top, own.width, own.height].map(x => x / image.width); });"
        "return [innerWidth, document.documentElement.scrollWidth, windows];"
    )
    run(gallery, tmp_path, script)  # writes scripted.html
    (gallery / "frame.html").write_text(  # a window of its own has at least 500 pixels
        "<title></title><iframe src=scripted.html style='width: 420px; height: 900px; border: 0'></iframe>"
        "<script>onload = () => setTimeout(() => document.title = frames[0].document.title, 100)</script>"
    )
    inner, used, shown = title_in_browser(gallery / "frame.html", tmp_path)
    assert used <= inner == 420
    windows = sheet_windows(3, 2)
    for found, window in zip(shown, windows, strict=True):
        assert found == pytest.approx([pixels / sheet_size(windows)[0] for pixels in window], abs=3e-3)
