# SPDX-License-Identifier: MPL-2.0
"""A page that shows two results side by side without their names, and counts which people prefer.

The folder holds `pairs/N.webm`, without sound and without loss, `key.json`, which says what they
show, and `votes.jsonl`. The server gives out neither of the latter two.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fractions import Fraction
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path

import av
import numpy as np

#: Greatest side of what is shown of a clip, so that two fit beside each other pixel by pixel.
SIDE = 800
#: Pixels between the two, and their grey level.
GAP, GREY = 16, 24
CHOICES = ("left", "right", "same")
#: Longest vote in bytes.
LONGEST = 200


class BlindError(Exception):
    """A comparison cannot be made or read. The message is one sentence."""


@dataclass(frozen=True)
class Pair:
    """What a pair shows: a clip, and the upscalers on the left and on the right."""

    clip: str
    left: str
    right: str


@dataclass(frozen=True)
class Key:
    """The pairs of a folder, each of which shows the upscaler `ours` beside another."""

    ours: str
    pairs: list[Pair]


@dataclass(frozen=True)
class Entry:
    """A pair to show: two results `[F,H,W,3]` uint8 of the upscalers `labels`, ours first."""

    clip: str
    labels: tuple[str, str]
    shown: tuple[np.ndarray, np.ndarray]
    rate: Fraction


def side_by_side(left: np.ndarray, right: np.ndarray, corner: tuple[int, int]) -> np.ndarray:
    """Return the parts of two clips at a corner `(x, y)`, beside each other."""
    x, y = corner
    parts = [clip[:, y : y + SIDE, x : x + SIDE] for clip in (left, right)]
    frames, height = parts[0].shape[:2]
    gap = np.full((frames, height, GAP, 3), GREY, np.uint8)
    return np.concatenate([parts[0], gap, parts[1]], 2)


def write_video(path: Path, clip: np.ndarray, rate: Fraction) -> None:
    """Write `[F,H,W,3]` uint8 as VP9 without loss of Y'CbCr 4:4:4, which browsers play."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="webm") as container:
        options = {"lossless": "1", "deadline": "realtime", "cpu-used": "8", "row-mt": "1"}
        stream = container.add_stream("libvpx-vp9", rate=rate, options=options)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv444p"
        for frame in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def corner_of(shown: tuple[np.ndarray, np.ndarray]) -> tuple[int, int]:
    """Return the corner `(x, y)` of the part where two clips differ most."""
    height, width = shown[0].shape[1:3]
    tall, wide = min(SIDE, height), min(SIDE, width)
    middle = len(shown[0]) // 2
    change = np.abs(shown[0][middle].astype(float) - shown[1][middle]).sum(-1)
    total = np.pad(change, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    sums = total[tall:, wide:] - total[:-tall, wide:] - total[tall:, :-wide] + total[:-tall, :-wide]
    y, x = np.unravel_index(sums.argmax(), sums.shape)
    return int(x), int(y)


def prepare(folder: Path, entries: Iterable[Entry], rng: np.random.Generator) -> Key:
    """Write pairs in random order, each with a random side on the left, and their key.

    Raises `BlindError` if the folder holds votes.
    """
    if (folder / "votes.jsonl").exists():
        raise BlindError(
            f"{folder} holds votes; name no clips to go on with its pairs, or another --report"
        )
    waiting = folder / "waiting"
    made: list[Pair] = []
    ours = ""
    for number, entry in enumerate(entries):
        ours = entry.labels[0]
        order = (1, 0) if rng.integers(2) else (0, 1)
        left, right = (entry.shown[index] for index in order)
        picture = side_by_side(left, right, corner_of(entry.shown))
        write_video(waiting / f"{number}.webm", picture, entry.rate)
        made.append(Pair(entry.clip, *(entry.labels[index] for index in order)))
    if not made:
        raise BlindError("there is nothing to compare; name two upscalers or more")
    (folder / "pairs").mkdir(parents=True, exist_ok=True)
    places = [int(place) for place in rng.permutation(len(made))]
    for number, place in enumerate(places):
        (waiting / f"{place}.webm").replace(folder / "pairs" / f"{number}.webm")
    waiting.rmdir()
    key = Key(ours, [made[place] for place in places])
    text = json.dumps(asdict(key), indent=1)
    (folder / "key.json").write_text(f"{text}\n", encoding="utf-8")
    return key


def read_key(folder: Path) -> Key:
    """Return the key of a folder. Raises `BlindError`."""
    path = folder / "key.json"
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        return Key(read["ours"], [Pair(**pair) for pair in read["pairs"]])
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise BlindError(f"{path} holds no pairs; make them with `starsr-eval --blind`") from e


def read_votes(folder: Path) -> dict[int, str]:
    """Return the last vote on each pair. Raises `BlindError`."""
    path = folder / "votes.jsonl"
    if not path.exists():
        return {}
    try:
        votes = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {int(vote["pair"]): str(vote["choice"]) for vote in votes}
    except (ValueError, TypeError, KeyError) as e:
        raise BlindError(f"{path} holds a line that is no vote; correct or remove it") from e


def parse_vote(text: bytes, count: int) -> tuple[int, str]:
    """Return the pair and the choice of a vote. Raises `ValueError`."""
    vote = json.loads(text)
    if not isinstance(vote, Mapping):
        raise ValueError("a vote is an object")
    pair, choice = vote.get("pair"), vote.get("choice")
    if type(pair) is not int or not 0 <= pair < count or choice not in CHOICES:
        raise ValueError("a vote has a pair and a choice")
    return pair, choice


class Server(ThreadingHTTPServer):
    """Serves the page on this machine alone and appends its votes to `votes.jsonl`."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder, self.count = folder, len(read_key(folder).pairs)
        super().__init__(("127.0.0.1", port), Handler)

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def state(self) -> bytes:
        """Return the number of pairs and those that are judged, as JSON."""
        return json.dumps({"pairs": self.count, "judged": sorted(read_votes(self.folder))}).encode()

    def record(self, pair: int, choice: str) -> None:
        """Append a vote."""
        time = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"pair": pair, "choice": choice, "time": time})
        with (self.folder / "votes.jsonl").open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


class Handler(BaseHTTPRequestHandler):
    """Answers requests for the page, its state and its pairs, and takes votes."""

    server: Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing: the terminal is for the address."""

    def is_local(self) -> bool:
        """Return whether the browser means this machine; other sites may name it otherwise."""
        port = self.server.server_address[1]
        return self.headers.get("Host") in (f"127.0.0.1:{port}", f"localhost:{port}")

    def reply(self, status: HTTPStatus, kind: str = "text/plain", body: bytes = b"") -> None:
        """Send an answer."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        """Answer with the page, the state or a pair."""
        names = {f"/pairs/{number}.webm": number for number in range(self.server.count)}
        if not self.is_local():
            self.reply(HTTPStatus.FORBIDDEN)
        elif self.path == "/":
            page = files("starsr.evaluation").joinpath("blind.html").read_bytes()
            self.reply(HTTPStatus.OK, "text/html; charset=utf-8", page)
        elif self.path == "/state":
            self.reply(HTTPStatus.OK, "application/json", self.server.state())
        elif self.path in names:
            video = self.server.folder / "pairs" / f"{names[self.path]}.webm"
            self.reply(HTTPStatus.OK, "video/webm", video.read_bytes())
        else:
            self.reply(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        """Take a vote."""
        length = self.headers.get("Content-Length", "")
        # A form of another site cannot send this type.
        is_json = self.headers.get("Content-Type") == "application/json"
        if not self.is_local() or not is_json:
            self.reply(HTTPStatus.FORBIDDEN)
        elif self.path != "/vote":
            self.reply(HTTPStatus.NOT_FOUND)
        elif not length.isdecimal() or int(length) > LONGEST:
            self.reply(HTTPStatus.BAD_REQUEST)
        else:
            try:
                vote = parse_vote(self.rfile.read(int(length)), self.server.count)
            except ValueError:
                self.reply(HTTPStatus.BAD_REQUEST)
                return
            self.server.record(*vote)
            self.reply(HTTPStatus.OK, "application/json", self.server.state())


def sign_test(won: int, lost: int) -> float:
    """Return the probability of a result at least as uneven if both were liked alike."""
    count, most = won + lost, max(won, lost)
    tail = sum(math.comb(count, k) for k in range(most, count + 1))
    return min(1.0, 2 * tail / 2**count)


def result(key: Key, votes: Mapping[int, str]) -> str:
    """Return how often our upscaler was preferred to each other one, a line each."""
    ours = key.ours
    counts: dict[str, Counter[str]] = {}
    for number, pair in enumerate(key.pairs):
        other = pair.right if pair.left == ours else pair.left
        tally = counts.setdefault(other, Counter())
        choice = votes.get(number)
        if choice is None:
            tally["open"] += 1
        elif choice == "same":
            tally["same"] += 1
        else:
            tally["won" if getattr(pair, choice) == ours else "lost"] += 1
    lines = []
    for other, tally in counts.items():
        chance = sign_test(tally["won"], tally["lost"])
        lines.append(
            f"{ours} against {other}: {tally['won']} preferred, {tally['lost']} not, "
            f"{tally['same']} alike, {tally['open']} not judged; sign test p = {chance:.3f}"
        )
    return "\n".join(lines)
