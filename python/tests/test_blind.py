# SPDX-License-Identifier: MPL-2.0
"""The page that shows pairs without names, its server and its votes."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from conftest import ROOT
from starsr.data.media import read_video, write_lossless
from starsr.evaluation import blind, cli

LABELS = ("our upscaler", "their upscaler")


def entry(number, size=(32, 48)):
    """A pair of clips of one level each, all of which differ."""
    levels = (40 + 8 * number, 44 + 8 * number)
    shown = tuple(np.full((3, *size, 3), level, np.uint8) for level in levels)
    return blind.Entry(f"clip {number}", LABELS, shown, Fraction(25))


@pytest.fixture
def folder(tmp_path):
    blind.prepare(tmp_path / "blind", map(entry, range(12)), np.random.default_rng(1))
    return tmp_path / "blind"


def test_sides_and_order_are_random_and_the_key_knows_them(folder):
    key = blind.read_key(folder)
    assert key.ours == LABELS[0]
    sides = Counter(pair.left for pair in key.pairs)
    assert set(sides) == set(LABELS) and min(sides.values()) >= 2
    numbers = [int(pair.clip.split()[1]) for pair in key.pairs]
    assert sorted(numbers) == list(range(12)) != numbers
    for place, (pair, number) in enumerate(zip(key.pairs, numbers, strict=True)):
        assert {pair.left, pair.right} == set(LABELS)
        picture, rate = read_video(folder / "pairs" / f"{place}.webm")
        assert picture.shape == (3, 32, 48 + 16 + 48, 3) and rate == 25
        levels = dict(zip(LABELS, (40 + 8 * number, 44 + 8 * number), strict=True))
        # Y'CbCr has fewer levels than RGB, so a level may become its neighbour.
        means = picture[:, :, :48].mean(), picture[:, :, 64:].mean()
        assert means[0] == pytest.approx(levels[pair.left], abs=1.5)
        assert means[1] == pytest.approx(levels[pair.right], abs=1.5)
    assert not (folder / "waiting").exists()


def test_large_clips_are_cut_where_they_differ():
    one = np.zeros((1, 900, 1000, 3), np.uint8)
    other = one.copy()
    other[:, 880:, 990:] = 255
    assert blind.corner_of((one, other)) == (200, 100)
    picture = blind.side_by_side(one, other, (200, 100))
    assert picture.shape == (1, 800, 1616, 3) and picture[0, -1, -1, 0] == 255
    assert (picture[:, :, :800] == 0).all() and (picture[:, :, 800:816] == 24).all()


@pytest.fixture
def server(folder):
    with blind.Server(folder) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(server, path, body=None, **headers):
    """Return the status and the body of an answer; a body is posted."""
    request = urllib.request.Request(server.url.rstrip("/") + path, body, headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as e:
        return e.code, e.read()


def vote(server, body, kind="application/json", **headers):
    return ask(server, "/vote", body, **{"Content-Type": kind, **headers})[0]


def test_the_server_keeps_the_names_to_itself(server):
    status, page = ask(server, "/")
    assert status == 200 and b"<video" in page
    state = json.loads(ask(server, "/state")[1])
    assert state == {"pairs": 12, "judged": []}
    status, video = ask(server, "/pairs/3.webm")
    assert status == 200 and video == (server.folder / "pairs" / "3.webm").read_bytes()
    for text in (page, video, json.dumps(state).encode()):
        assert not any(label.encode() in text for label in LABELS) and b"clip 3" not in text
    vote(server, b'{"pair": 0, "choice": "left"}')
    for path in ("/key.json", "/votes.jsonl", "/pairs/12.webm", "/pairs/../key.json", "/pairs/"):
        assert ask(server, path)[0] == 404, path


def test_votes_are_kept_and_bad_ones_refused(server):
    assert vote(server, b'{"pair": 2, "choice": "left"}') == 200
    assert vote(server, b'{"pair": 11, "choice": "same"}') == 200
    assert vote(server, b'{"pair": 2, "choice": "right"}') == 200
    votes = {2: "right", 11: "same"}
    assert blind.read_votes(server.folder) == votes
    for body in (
        b'{"pair": 12, "choice": "left"}',
        b'{"pair": -1, "choice": "left"}',
        b'{"pair": true, "choice": "left"}',
        b'{"pair": 1, "choice": "both"}',
        b'{"pair": 1, "choice": ["left"]}',
        b"[]",
        b"\xff",
    ):
        assert vote(server, body) == 400, body
    good = b'{"pair": 1, "choice": "left"}'
    assert vote(server, good, kind="text/plain") == 403
    assert vote(server, good, Host="elsewhere.example") == 403
    assert ask(server, "/state", Host="elsewhere.example")[0] == 403
    assert blind.read_votes(server.folder) == votes
    assert len((server.folder / "votes.jsonl").read_text().splitlines()) == 3


def test_votes_are_counted_for_whom_they_were():
    pairs = [
        blind.Pair("a", "ours", "x"),
        blind.Pair("b", "x", "ours"),
        blind.Pair("c", "x", "ours"),
        blind.Pair("d", "y", "ours"),
        blind.Pair("e", "ours", "y"),
        blind.Pair("f", "ours", "y"),
    ]
    votes = {0: "left", 1: "right", 2: "left", 3: "same", 4: "right"}
    assert blind.result(blind.Key("ours", pairs), votes).splitlines() == [
        "ours against x: 2 preferred, 1 not, 0 alike, 0 not judged; sign test p = 1.000",
        "ours against y: 0 preferred, 1 not, 1 alike, 1 not judged; sign test p = 1.000",
    ]
    assert blind.sign_test(5, 0) == blind.sign_test(0, 5) == 0.0625
    assert blind.sign_test(9, 1) == pytest.approx(22 / 1024) and blind.sign_test(0, 0) == 1


def test_errors_say_what_to_do(folder, tmp_path):
    with pytest.raises(blind.BlindError, match="two upscalers or more"):
        blind.prepare(tmp_path / "empty", [], np.random.default_rng())
    with pytest.raises(blind.BlindError, match="starsr-eval --blind"):
        blind.read_key(tmp_path / "nowhere")
    (folder / "votes.jsonl").write_text("no vote\n")
    with pytest.raises(blind.BlindError, match="no vote; correct or remove"):
        blind.read_votes(folder)
    with pytest.raises(blind.BlindError, match="holds votes; name no clips"):
        blind.prepare(folder, [entry(0)], np.random.default_rng())


def test_the_command_serves_stops_goes_on_and_counts(tmp_path, capsys):
    clip = tmp_path / "clip.mkv"
    write_lossless(clip, np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8))
    report = ["--report", str(tmp_path / "report")]
    upscalers = ["--upscaler", "bicubic", "--upscaler", "point=ffmpeg:point"]

    def served(*words, judge):
        command = [sys.executable, "-m", "starsr.evaluation.cli", *words, *report, "--blind"]
        environment = {"PYTHONPATH": str(ROOT / "python" / "src"), "PATH": "/usr/bin:/bin"}
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            # Shells let background processes, and so these tests, ignore interrupts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as running:
            assert running.stdout is not None
            try:
                found = re.search(r"http://127\.0\.0\.1:\d+/", running.stdout.readline())
                assert found is not None
                judge(type("Address", (), {"url": found[0]}))
                running.send_signal(signal.SIGINT)
                output, errors = running.communicate(timeout=600)
            finally:
                running.kill()
            assert running.returncode == 0, errors
            return output

    stopped = served(str(clip), *upscalers, judge=lambda _server: None)
    assert "0 of 1 pairs are judged" in stopped
    key = blind.read_key(tmp_path / "report" / "blind")
    assert key.ours == "bicubic" and len(key.pairs) == 1
    ours = "left" if key.pairs[0].left == "bicubic" else "right"
    body = json.dumps({"pair": 0, "choice": ours}).encode()
    assert "1 of 1 pairs are judged" in served(judge=lambda server: vote(server, body))
    assert cli.main([*report, "--votes"]) == 0
    assert "bicubic against point: 1 preferred, 0 not" in capsys.readouterr().out
    assert cli.main([str(clip), *upscalers, *report, "--blind"]) == 1
    assert "holds votes" in capsys.readouterr().err


def test_the_page_plays_and_takes_votes(browser, server):
    browser.call("POST", "/url", {"url": server.url})

    def wait(condition):
        for _ in range(600):
            if browser.run(f"return {condition}"):
                return
            time.sleep(0.1)
        raise AssertionError(browser.run("return document.body.innerText"))

    video = "document.querySelector('video')"
    wait(f"{video}.readyState >= 2 && !{video}.paused")
    size = f"return [{video}.videoWidth, {video}.videoHeight, {video}.muted, {video}.loop]"
    assert browser.run(size) == [112, 32, True, True]
    progress = "document.querySelector('#progress').textContent"
    assert browser.run(f"return {progress}") == "Pair 1 of 12"
    browser.run("document.querySelector('[data-choice=right]').click()")
    wait(f"{progress} == 'Pair 2 of 12'")
    browser.press("body", "\ue012")
    wait(f"{progress} == 'Pair 3 of 12'")
    browser.press("body", "\ue015")
    wait(f"{progress} == 'Pair 4 of 12'")
    assert blind.read_votes(server.folder) == {0: "right", 1: "left", 2: "same"}
    for number in range(3, 12):
        server.record(number, "left")
    browser.call("POST", "/url", {"url": server.url})
    wait(f"{progress} == 'All 12 pairs are judged. Thank you!'")
    assert browser.run("return [...document.querySelectorAll('button')].every(b => b.disabled)")
    assert not any(label in browser.run("return document.body.innerText") for label in LABELS)
