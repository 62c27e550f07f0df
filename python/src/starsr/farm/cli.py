# SPDX-License-Identifier: MPL-2.0
"""`starsr-farm`: restores the segments of a job on the machines of a Ray cluster."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
from tqdm import tqdm

from starsr.farm import node
from starsr.farm.node import Work

#: Files that are fetched from a store at once.
AT_ONCE = 16


class FarmError(Exception):
    """The job cannot go on; the message says why."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    result = argparse.ArgumentParser(
        prog="starsr-farm",
        description="Restores the segments of a job, which `starsr plan` has made, on the machines "
        "of a Ray cluster, and joins them to OUTPUT. The same command goes on with a job that was "
        "interrupted.",
        epilog="URLs are those of fsspec, such as s3://bucket/folder. What follows -- goes to "
        "`starsr work` on each machine, such as -- --provider cuda.",
    )
    add = result.add_argument
    add("output", type=Path, nargs="?", help="the file to write (default: only make the parts)")
    add("--job", type=Path, required=True, metavar="DIR", help="folder of the job")
    add(
        "--store",
        metavar="URL",
        help="where machines find the plan and put their parts, if they do not see DIR",
    )
    add(
        "--input",
        metavar="PATH|URL",
        help="where the input is for the machines; a URL is fetched once for each "
        "(default: the plan's path)",
    )
    add("--model", metavar="DIR|URL", help="the same for the model bundle")
    add("--cache", metavar="DIR", help="folder on the machines for what they fetch (default: /tmp)")
    add("--cpus", type=float, default=2, help="CPUs of a task, and its threads (%(default)g)")
    add("--gpus", type=float, default=0, help="GPUs of a task, such as 1 or 0.5 (%(default)g)")
    add("--retries", type=int, default=3, help="times that Ray repeats a task (%(default)s)")
    add(
        "--in-flight",
        type=int,
        help="most tasks that Ray has at a time (default: twice those that can run)",
    )
    add("--address", help="the Ray cluster (default: RAY_ADDRESS, or this machine)")
    add("--program", default="starsr", help="the program starsr on all machines (%(default)s)")
    add("-f", "--force", action="store_true", help="replace OUTPUT if it exists")
    add("-q", "--quiet", action="store_true", help="print no progress")
    return result


def call(options: argparse.Namespace, command: str, *words: str) -> str:
    """Run a command of the program for the job and return what it prints. Raises `FarmError`."""
    line = [options.program, command, f"--job={options.job}", *words]
    try:
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError as error:
        raise FarmError(f"{options.program}: {error.strerror}; name it with --program") from None
    if done.returncode:
        raise FarmError(done.stderr.strip().removeprefix("starsr: ") or f"{line} failed")
    return done.stdout


def status(options: argparse.Namespace) -> dict[str, Any]:
    """Return what `starsr status` says of the job."""
    return json.loads(call(options, "status", "--json"))


def open_store(options: argparse.Namespace) -> None:
    """Put the plan into the store, and take the parts that it has already. Raises `FarmError`."""
    system, root = fsspec.url_to_fs(options.store)
    plan, *others = node.PLAN
    if node.exists(options.store, plan):
        if system.cat_file(f"{root}/{plan}") != (options.job / plan).read_bytes():
            raise FarmError(f"{options.store}: has another plan than {options.job}")
    else:
        # The plan comes last: with it, the store is complete.
        for name in [*others, plan]:
            node.put(options.job / name, options.store, name)
    collect(options)


def collect(options: argparse.Namespace) -> None:
    """Take the parts of the store that the job's folder lacks."""
    system, root = fsspec.url_to_fs(options.store)
    system.invalidate_cache()
    folder = f"{root}/parts"
    found = system.ls(folder, detail=False) if system.exists(folder) else []
    names = [name.rpartition("/")[2] for name in found]
    parts = options.job / "parts"

    def get(name: str) -> None:
        with tempfile.TemporaryDirectory(dir=parts, prefix=node.UNFINISHED) as place:
            path = Path(place) / name
            system.get_file(f"{folder}/{name}", str(path))
            os.replace(path, parts / name)

    missing = [n for n in names if n.endswith(".part") and not (parts / n).exists()]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(get, missing))


def remove_damaged(options: argparse.Namespace, damaged: Iterable[int]) -> None:
    """Remove parts, so that they are made again."""
    for segment in damaged:
        (options.job / node.part(segment)).unlink(missing_ok=True)
        if options.store and node.exists(options.store, node.part(segment)):
            system, root = fsspec.url_to_fs(options.store)
            system.rm_file(f"{root}/{node.part(segment)}")


def restore(options: argparse.Namespace, segments: Sequence[int], count: int) -> dict[int, str]:
    """Restore `segments` of `count` on the cluster; return those that failed, with the reasons."""
    # Only here: a job whose parts are all there needs no Ray.
    import ray

    from starsr.farm.driver import Needs, Window, dispatch, slots, submitter

    threads = (f"--threads={max(1, int(options.cpus))}",) if options.cpus else ()
    work = Work(
        options.program,
        str(options.job.absolute()),
        options.store,
        options.input,
        options.model,
        options.cache,
        (*threads, *options.words),
    )
    needs = Needs(options.cpus, options.gpus, options.retries)
    context = ray.init(address=options.address, log_to_driver=False, logging_level="error")
    failed: dict[int, str] = {}
    frames = 0
    bar = tqdm(
        total=count, initial=count - len(segments), unit="segment", disable=options.quiet or None
    )
    try:
        if not options.quiet and context.dashboard_url:
            bar.write(f"Ray's dashboard: http://{context.dashboard_url}", file=sys.stderr)
        if not slots(needs):
            wanted = f"{needs.cpus:g} CPUs and {needs.gpus:g} GPUs"
            bar.write(f"no machine has {wanted}; Ray waits for one", file=sys.stderr)
        window = Window(needs, options.in_flight)
        for segment, done in dispatch(segments, submitter(work, needs), window):
            if isinstance(done, str):
                failed[segment] = done
                bar.write(f"segment {segment} failed: {done}", file=sys.stderr)
            else:
                frames += done.frames
                bar.update()
            rate = frames / max(bar.format_dict["elapsed"], 1e-3)
            bar.set_postfix_str(f"{rate:.1f} fps, {len(failed)} failed", refresh=False)
    finally:
        bar.close()
        ray.shutdown()
    return failed


def run(options: argparse.Namespace) -> None:
    """Do what the options say. Raises `FarmError`."""
    if options.output and options.output.exists() and not options.force:
        raise FarmError(f"{options.output}: exists already; give --force to replace it")
    if options.store:
        # The program says what is wrong with a folder.
        status(options)
        open_store(options)
    state = status(options)
    remove_damaged(options, state["damaged"])
    done = set(state["done"])
    rest = [segment for segment in range(state["segments"]) if segment not in done]
    failed: dict[int, str] = {}
    if rest:
        failed = restore(options, rest, state["segments"])
        if options.store:
            collect(options)
        state = status(options)
    missing = state["segments"] - len(state["done"])
    if missing:
        first, reason = next(iter(failed.items()), (None, ""))
        detail = f"; the first is segment {first}: {reason}" if failed else ""
        raise FarmError(
            f"{missing} of {state['segments']} segments are missing{detail}; "
            "the same command goes on with the job"
        )
    if options.output:
        words = ["--quiet", *(["--force"] if options.force else []), str(options.output)]
        if options.input and "://" not in options.input:
            words.insert(0, f"--input={options.input}")
        call(options, "join", *words)


def main() -> None:
    """Run the command."""
    words = sys.argv[1:]
    own = words.index("--") if "--" in words else len(words)
    options = parser().parse_args(words[:own])
    options.words = tuple(words[own + 1 :])
    try:
        run(options)
    except FarmError as error:
        sys.exit(f"starsr-farm: {error}")
    except ImportError as error:
        sys.exit(f"starsr-farm: {error}; run pip install 'starsr[farm]'")
    except KeyboardInterrupt:
        sys.exit("starsr-farm: interrupted; the same command goes on with the job")
