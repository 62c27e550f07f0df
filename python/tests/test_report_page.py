# SPDX-License-Identifier: MPL-2.0
"""The report in chromium."""

import json
import re
import time

import numpy as np
import pytest
from PIL import Image

from starsr.data.clips import pan
from starsr.data.media import read_photo, read_video
from starsr.data.pairs import write_pair
from starsr.evaluation import cli, sources

RIGHT, HOME, TAB = "\ue014", "\ue011", "\ue004"


@pytest.fixture
def report(photos, tmp_path):
    """The folder of a small report."""
    folder = tmp_path / "a <set> & more"
    high = pan(read_photo(photos / "photo0.png"), 4, (128, 160), np.random.default_rng(2), 1.2)
    low, _ = sources.degrade(high, "medium", np.random.default_rng(0))
    write_pair(folder, "clip", high, low, "")
    target = tmp_path / "report"
    command = [
        folder,
        "--report",
        target,
        "--upscaler",
        "bicubic",
        "--upscaler",
        "ffmpeg:point",
        "--metric",
        "vmaf",
    ]
    assert cli.main([str(word) for word in [*command, "--title", "A <b>title</b>"]]) == 0
    return target


@pytest.fixture
def page(browser, report):
    """The report, open in the browser."""
    browser.call("POST", "/url", {"url": (report / "index.html").as_uri()})
    return report


def test_slider_table_and_pictures(browser, page):
    # Lazy pictures would load only when they come into view.
    browser.run("for (const image of document.images) image.loading = 'eager'")
    while not browser.run("return [...document.images].every(i => i.complete)"):
        time.sleep(0.1)
    broken = "return [...document.images].filter(i => !i.naturalWidth).map(i => i.src)"
    assert browser.run(broken) == []
    assert browser.run("return document.images.length") == 10
    assert (
        browser.run("return [document.title, document.querySelector('h1').textContent]")
        == ["A <b>title</b>"] * 2
    )

    rows = browser.run(
        "return [...document.querySelectorAll('#summary tbody tr')]"
        ".map(r => [...r.children].map(c => c.textContent.trim()))"
    )
    assert [row[0] for row in rows] == ["bicubic", "ffmpeg:point", "ground truth"]
    assert len(rows[0]) == 14
    figures = json.loads((page / "report.json").read_text())["means"]["a <set> & more"]
    assert rows[0][1] == f"{figures['bicubic']['psnr']:.2f}"
    best = browser.run(
        "return [...document.querySelectorAll('#summary .best')]"
        ".map(c => c.parentNode.children[0].textContent)"
    )
    assert "bicubic" in best and "ground truth" not in best
    assert browser.run("return document.querySelectorAll('.chart polyline').length") == 5

    split = "return getComputedStyle(document.querySelector('.stage')).getPropertyValue('--split')"
    clip = "return getComputedStyle(document.querySelector('.over')).clipPath"
    assert browser.run(split) == "50%"
    browser.press(".stage input", RIGHT * 3)
    assert browser.run(split) == "53%" and "47%" in browser.run(clip)
    browser.press(".stage input", HOME)
    assert browser.run(split) == "0%"

    # The pointer moves the border to where it is pressed.
    browser.run("document.querySelector('.stage').scrollIntoView({block: 'center'})")
    box = browser.run("return document.querySelector('.stage').getBoundingClientRect().toJSON()")
    x, y = round(box["x"] + 0.75 * box["width"]), round(box["y"] + box["height"] / 2)
    moves = [
        {"type": "pointerMove", "x": x, "y": y},
        {"type": "pointerDown", "button": 0},
        {"type": "pointerUp", "button": 0},
    ]
    browser.call(
        "POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": moves}]}
    )
    assert 72 <= float(browser.run(split).rstrip("%")) <= 78

    browser.press(".pick-first", "ground")
    assert browser.run("return document.querySelector('.tag.first').textContent") == "ground truth"
    assert browser.run("return document.querySelector('.over').src").endswith("ground-truth.webp")
    browser.press(".pick-actual", " ")
    assert (
        browser.run("return document.querySelector('.under').getBoundingClientRect().width") == 160
    )
    errors = [
        entry
        for entry in browser.call("POST", "/se/log", {"type": "browser"})
        if entry["level"] == "SEVERE"
    ]
    assert not errors


def test_all_is_reached_by_keyboard_and_named(browser, page):
    browser.run("document.activeElement.blur()")
    reached = set()
    for _ in range(25):
        presses = [{"type": kind, "value": TAB} for kind in ("keyDown", "keyUp")]
        keys = {"type": "key", "id": "keys", "actions": presses}
        browser.call("POST", "/actions", {"actions": [keys]})
        name = "return e.type || e.className || e.tagName.toLowerCase()"
        reached.add(browser.run(f"const e = document.activeElement; {name}"))
    assert {"range", "select-one", "checkbox", "scroll", "summary"} <= reached
    inputs = "[...document.querySelectorAll('input, select')]"
    unnamed = f"return {inputs}.filter(e => !e.ariaLabel && !e.labels.length).length"
    assert browser.run(unnamed) == 0
    assert browser.run("return [...document.images].filter(i => !i.alt).length") == 0


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_are_legible_and_nothing_overflows(browser, page, dark):
    browser.show(dark)
    style = browser.run(
        "const s = getComputedStyle(document.querySelector('.card')); "
        "return [s.color, s.backgroundColor]"
    )
    ink, ground = (np.mean([int(n) for n in re.findall(r"\d+", color)[:3]]) for color in style)
    assert (ink > ground) == dark and abs(ink - ground) > 150
    for width in (1300, 420):
        browser.call("POST", "/window/rect", {"width": width, "height": 900})
        assert browser.run(
            "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        ), width


def test_pictures_are_without_loss(report):
    result, _ = read_video(report / "results" / "bicubic" / "a-set-more-clip.mkv")
    picture = np.asarray(Image.open(report / "images" / "a-set-more-clip-bicubic.webp"))
    assert np.array_equal(picture, result[2])
    piece = np.asarray(Image.open(report / "images" / "a-set-more-clip-bicubic-xt.webp"))
    found = re.search(r"row (\d+) from pixel 0", (report / "index.html").read_text())
    assert found is not None
    assert np.array_equal(piece, result[:, int(found[1])])


def test_slices_stand_below_each_other_in_one_picture(report):
    result, _ = read_video(report / "results" / "bicubic" / "a-set-more-clip.mkv")
    picture = np.asarray(Image.open(report / "images" / "a-set-more-clip-xt.png"))
    html = (report / "index.html").read_text()
    found = re.search(r"row (\d+) from pixel 0", html)
    assert found is not None and 'href="images/a-set-more-clip-xt.png"' in html
    # Four frames of twelve rows below a label: the input, two results and the ground truth.
    assert picture.shape == (4 * (18 + 48), 160, 3)
    assert np.array_equal(picture[66 + 18 : 132], result[:, int(found[1])].repeat(12, 0))
    assert (picture[66 : 66 + 18] < 100).any() and (picture[66 : 66 + 18, 80:] == 255).all()
