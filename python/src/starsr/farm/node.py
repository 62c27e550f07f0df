# SPDX-License-Identifier: MPL-2.0
"""What a machine of the farm does: it restores one segment of a job with `starsr work`.

Ray sends this module to the machines, which need Ray, fsspec and the program `starsr`.
"""

import hashlib
import json
import os
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from filelock import FileLock

#: Files of a job's folder that a worker reads, and its folders (docs/farms.md, "The folder").
PLAN = ("plan.json", "frames.bin")
FOLDERS = ("parts", "claims", "failures")
#: What the names of unfinished files begin with.
UNFINISHED = ".unfinished-"


class SegmentError(RuntimeError):
    """A segment has no part yet; the message is a sentence of the program's."""


@dataclass(frozen=True)
class Work:
    """What all segments of a job have in common."""

    #: The program `starsr`, on the PATH or by its path.
    program: str
    #: The job's folder, which all machines see.
    job: str
    #: Where the job's files are instead, as a URL of fsspec's.
    store: str | None = None
    #: The input and the model bundle: paths on each machine, or URLs that it fetches once.
    input: str | None = None
    model: str | None = None
    #: Folder of each machine for what it fetches.
    cache: str | None = None
    #: More words for `starsr work`.
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Done:
    """A segment whose part is in its place."""

    segment: int
    #: Frames and seconds of `starsr work`; 0 where the part was there already.
    frames: int
    seconds: float
    #: When the attempt began, and how long all of it took, in seconds.
    began: float
    took: float


def part(segment: int) -> str:
    """Return the name of a segment's part in a job's folder."""
    return f"parts/{segment:06}.part"


def restore(work: Work, segment: int) -> Done:
    """Restore `segment`, unless its part is there. Raises `SegmentError`.

    With a store, the part is put there under its name only when it is complete.
    """
    began, clock = time.time(), time.monotonic()
    cache = Path(work.cache or Path(tempfile.gettempdir()) / "starsr-farm")
    folder = Path(work.job)
    if work.store:
        if exists(work.store, part(segment)):
            return Done(segment, 0, 0.0, began, time.monotonic() - clock)
        folder = open_job(work.store, cache)
    command = [work.program, "work", f"--job={folder}", f"--segment={segment}"]
    command += ["--json", "--attached"]
    for name, place in (("input", work.input), ("model", work.model)):
        if place:
            command.append(f"--{name}={fetch(place, cache) if '://' in place else place}")
    result = run([*command, *work.words])
    if work.store:
        put(folder / part(segment), work.store, part(segment))
        (folder / part(segment)).unlink()
    took = time.monotonic() - clock
    return Done(segment, result.get("frames", 0), result.get("seconds", 0.0), began, took)


def run(command: list[str]) -> dict[str, Any]:
    """Run the program, which ends when this process does, and return what it says of the segment.

    Raises `SegmentError` with its last words.
    """
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        except OSError as error:
            raise SegmentError(f"{command[0]}: {error.strerror or error}") from None
        # The pipe to its standard input closes in whatever way this process ends.
        with process:
            assert process.stdout
            lines = process.stdout.read().decode(errors="replace").splitlines()
        errors.seek(0)
        words = errors.read().decode(errors="replace").splitlines()
    if process.returncode:
        last = [line for line in words if line.startswith("starsr: ")] or words
        status = f"{command[0]} ended with status {process.returncode}"
        raise SegmentError(last[-1].removeprefix("starsr: ") if last else status)
    return json.loads(lines[-1]) if lines else {}


def exists(store: str, name: str) -> bool:
    """Return whether the store has the file `name`."""
    system, root = fsspec.url_to_fs(store)
    system.invalidate_cache()
    return bool(system.exists(f"{root}/{name}"))


def put(path: Path, store: str, name: str) -> None:
    """Put the file at `path` into the store, where it gets its name only when it is complete."""
    system, root = fsspec.url_to_fs(store)
    folder, _, last = f"{root}/{name}".rpartition("/")
    unfinished = f"{folder}/{UNFINISHED}{uuid.uuid4().hex}"
    system.makedirs(folder, exist_ok=True)
    system.put_file(str(path), unfinished)
    system.mv(unfinished, f"{folder}/{last}")


def open_job(store: str, cache: Path) -> Path:
    """Return this machine's folder for the job in the store, with its plan."""
    system, root = fsspec.url_to_fs(store)
    key = system.ukey(f"{root}/{PLAN[0]}")

    def get(folder: Path) -> None:
        for name in FOLDERS:
            (folder / name).mkdir(parents=True)
        for name in PLAN:
            system.get_file(f"{root}/{name}", str(folder / name))

    return once(cache / digest(f"{store} {key}") / "job", get)


def fetch(url: str, cache: Path) -> Path:
    """Return this machine's copy of a file or folder, which is fetched only once.

    A file that has changed is fetched anew.
    """
    system, root = fsspec.url_to_fs(url)
    is_folder = system.isdir(root)
    state = sorted(system.find(root, detail=True).items()) if is_folder else system.ukey(root)
    target = cache / digest(f"{url} {state}") / root.rstrip("/").rpartition("/")[2]

    def get(path: Path) -> None:
        if is_folder:
            system.get(root.rstrip("/") + "/", f"{path}/", recursive=True)
        else:
            system.get_file(root, str(path))

    return once(target, get)


def once(target: Path, make: Callable[[Path], object]) -> Path:
    """Let one process of this machine make `target`; return it, complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=UNFINISHED) as folder:
                path = Path(folder) / target.name
                make(path)
                os.replace(path, target)
    return target


def digest(text: str) -> str:
    """Return a name for `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
