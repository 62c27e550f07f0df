# SPDX-License-Identifier: MPL-2.0
"""What a farm costs: measured on this machine, and counted up to a thousand workers.

`python -m starsr.farm.simulate` measures, and prints tables of, this:

* The driver: `starsr.farm.driver` hands all segments to a real Ray, as many in flight as for the
  greatest number of workers. Segments only sleep, and here for no time at all, so that what is
  left is the time of the driver and of Ray.
* A loss: half of the nodes of a real Ray cluster on this machine go while segments sleep on them.
* A segment: the program restores a clip in segments of two lengths. A line through the times of
  its processes over the frames they restore gives the time of a start (program, model, decoder,
  encoder) and of a frame. The plan says which frames are restored twice.
* Workers: a simulation in simulated time. The driver takes its measured time for each segment, one
  after the other, and the workers take that of a segment.
"""

import argparse
import heapq
import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Numbers of workers in the table.
WORKERS = (1, 3, 10, 30, 100, 300, 1000)
#: Of each node of Ray's, in bytes.
OBJECT_STORE = 80 << 20


@dataclass(frozen=True)
class Costs:
    """What segments cost beside their own frames."""

    #: Frames of a segment that are restored twice.
    twice: float = 0.0
    #: Seconds from the start of the program to the first frame, and from the last one to the end.
    start: float = 0.0
    #: Seconds of the join for each segment.
    join: float = 0.0


def elapsed(lengths: Sequence[float], workers: int, driver: float) -> float:
    """Return the seconds until `workers` have restored segments of `lengths` seconds.

    The driver takes `driver` seconds for each, one after the other.
    """
    free = [0.0] * workers
    handed = end = 0.0
    for length in lengths:
        # The driver is ahead of the workers, and waits for none.
        handed += driver
        done = max(handed, heapq.heappop(free)) + length
        end = max(end, done)
        heapq.heappush(free, done)
    return end


def table(costs: Costs, segments: int, seconds: float, frames: int, driver: float) -> list[str]:
    """Return the lines of a table in Markdown: time, speed-up and cost for numbers of workers.

    `segments` have `frames`, which take `seconds`, beside the `costs` and those of the `driver`.
    """
    each = seconds * (1 + costs.twice / frames) + costs.start
    lengths = [each] * segments
    one, join = elapsed(lengths, 1, driver), costs.join * segments
    lines = [
        "| workers | time | speed-up | of linear | worker hours | time with join | speed-up |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for workers in WORKERS:
        took = elapsed(lengths, workers, driver)
        lines.append(
            f"| {workers:,} | {clock(took)} | {one / took:,.1f} | {one / took / workers:.1%} "
            f"| {took * workers / 3600:.1f} | {clock(took + join)} "
            f"| {(one + join) / (took + join):,.1f} |"
        )
    own = seconds * segments
    lines += ["", f"The frames alone take {clock(own)}; segments add {one / own - 1:.1%}."]
    return lines


def clock(seconds: float) -> str:
    """Return a time as hours, minutes and seconds."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def resident() -> int:
    """Return the bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure_driver(segments: int, in_flight: int, processes: int) -> dict[str, float]:
    """Return what the driver takes for each of `segments`, and its memory in bytes."""
    import ray

    from starsr.farm.driver import dispatch

    ray.init(
        num_cpus=processes,
        object_store_memory=OBJECT_STORE,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    task = ray.remote(num_cpus=1, max_retries=3, retry_exceptions=True)(sleep)
    # Worker processes start first.
    ray.get([task.remote(n, 0.5, None) for n in range(processes)])
    before, wall, cpu = resident(), time.monotonic(), time.process_time()

    def submit(segment: int) -> "ray.ObjectRef":
        return task.options(name=f"segment {segment}").remote(segment, 0.0, None)

    counted = sum(1 for _ in dispatch(range(segments), submit, lambda: in_flight))
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    ray.shutdown()
    assert counted == segments
    return {"wall": wall / segments, "cpu": cpu / segments, "grown": peak - before, "peak": peak}


def sleep(segment: int, seconds: float, log: str | None) -> int:
    """Stand for a segment."""
    if log:
        with Path(log).open("a") as file:
            file.write(f"{segment} {time.time()}\n")
    time.sleep(seconds)
    return segment


def measure_loss(nodes: int, seconds: float) -> dict[str, float]:
    """Lose half of `nodes`, of a worker each; return when their segments have begun again."""
    import ray
    from ray.cluster_utils import Cluster

    from starsr.farm.driver import dispatch

    head = {"num_cpus": 0, "object_store_memory": OBJECT_STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    machines = [
        cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE) for _ in range(nodes)
    ]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    task = ray.remote(num_cpus=1, max_retries=3)(sleep)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        total, results, lost = 10 * nodes, [], time.time()

        def submit(segment: int) -> "ray.ObjectRef":
            return task.remote(segment, seconds, str(log))

        for segment, _ in dispatch(range(total), submit, lambda: 2 * nodes):
            results.append(segment)
            if len(results) == 4 * nodes:
                lost = time.time()
                for machine in machines[: nodes // 2]:
                    cluster.remove_node(machine, allow_graceful=False)
        begun: dict[int, list[float]] = {}
        for row in log.read_text().splitlines():
            number, began = row.split()
            begun.setdefault(int(number), []).append(float(began))
    again = [times[-1] for times in begun.values() if len(times) > 1]
    ray.shutdown()
    cluster.shutdown()
    assert sorted(results) == list(range(total))
    return {"lost": len(again), "seconds": max(again, default=lost) - lost}


def measure_program(program: str, clip: Path, length: int, words: Sequence[str]) -> Costs:
    """Return the costs of segments of about `length` frames of `clip`."""
    fed: list[int] = []
    times: list[float] = []
    with tempfile.TemporaryDirectory() as place:

        def call(command: str, *words: str) -> float:
            began = time.monotonic()
            subprocess.run([program, command, *words], check=True, capture_output=True)
            return time.monotonic() - began

        # The last length is the one that counts.
        for size in (3 * length, length):
            job = f"--job={place}/{size}"
            call("plan", job, f"--segment-length={size}", *words, str(clip))
            plan = json.loads(Path(place, str(size), "plan.json").read_text())["segments"]
            ranges = [segment["context"] for segment in plan]
            new = [context["end"] - context["start"] for context in ranges]
            fed += new
            times += [call("work", job, f"--segment={number}") for number in range(len(plan))]
        start = line(fed, times)
        # With the start of the join, so rather too much.
        join = call("join", job, f"{place}/out.mkv") / len(plan)
    return Costs((sum(new) - plan[-1]["frames"]["end"]) / len(plan), start, join)


def line(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return `a` of the line `a + b x` of least squares, 0 at least."""
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((p - x) * (q - y) for p, q in zip(xs, ys, strict=True))
    slope /= sum((p - x) ** 2 for p in xs)
    return max(0.0, y - slope * x)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    result = argparse.ArgumentParser(
        prog="python -m starsr.farm.simulate", description="Measures what a farm costs."
    )
    add = result.add_argument
    add("--segments", type=int, default=20_000, help="segments of the job (%(default)s)")
    add("--seconds", type=float, default=10.0, help="time of their own frames (%(default)g s)")
    add("--frames", type=int, default=300, help="frames of a segment (%(default)s)")
    add("--twice", type=float, default=0.0, help="frames of a segment that are restored twice")
    add("--start", type=float, default=0.0, help="seconds that a segment's program takes to start")
    add("--join", type=float, default=0.0, help="seconds of the join for a segment")
    add("--processes", type=int, default=2, help="worker processes of the driver's test")
    add("--nodes", type=int, default=6, help="nodes of the loss's test (%(default)s)")
    add("--program", help="the program starsr, to measure these three on --clip")
    add("--clip", type=Path, help="a clip of a few segments")
    add("--length", type=int, default=24, help="frames of the clip's segments (%(default)s)")
    add("words", nargs="*", metavar="OPTION", help="options of `starsr plan`, after --")
    return result


def main() -> None:
    """Run the command."""
    options = parser().parse_args()
    say: Callable[[str], None] = lambda text: print(text, flush=True)  # noqa: E731
    driver = measure_driver(options.segments, 2 * WORKERS[-1], options.processes)
    share = driver["wall"] / options.seconds
    say(
        f"driver: {driver['wall'] * 1e3:.2f} ms a segment ({driver['cpu'] * 1e3:.2f} ms of CPU), "
        f"{share:.3%} of {options.seconds:g} s; memory {driver['peak'] / 1e6:.0f} MB, "
        f"{driver['grown'] / 1e6:.0f} MB more than before"
    )
    loss = measure_loss(options.nodes, 2.0)
    say(
        f"loss of {options.nodes // 2} of {options.nodes} nodes: {loss['lost']:.0f} segments were "
        f"lost, and all had begun again after {loss['seconds']:.1f} s; the driver hands "
        f"out those of 500 workers in {500 * driver['wall']:.1f} s"
    )
    costs = Costs(options.twice, options.start, options.join)
    if options.program and options.clip:
        costs = measure_program(options.program, options.clip, options.length, options.words)
    say(
        f"a segment: {costs.twice:.1f} frames restored twice, {costs.start:.2f} s to start, "
        f"{costs.join * 1e3:.1f} ms to join\n"
    )
    shape = (options.segments, options.seconds, options.frames, driver["wall"])
    say("\n".join(table(costs, *shape)))


if __name__ == "__main__":
    main()
