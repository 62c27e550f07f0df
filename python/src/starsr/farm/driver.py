# SPDX-License-Identifier: MPL-2.0
"""Segments as tasks of Ray: one task each, a bounded number of them at once."""

import math
import queue
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError

from starsr.farm import node
from starsr.farm.node import Done, Work

# Machines have this module from the driver, and need no package starsr.
cloudpickle.register_pickle_by_value(node)

#: Tasks that are handed to Ray for each one that can run, so that no machine waits for the driver
#: and an autoscaler sees that more machines would have work.
AHEAD = 2
#: Seconds between looks at how many tasks can run, as machines come and go.
LOOK = 2.0


@dataclass(frozen=True)
class Needs:
    """What a task needs of a machine, and how often Ray tries one that fails."""

    cpus: float = 2
    gpus: float = 0
    retries: int = 3


def slots(needs: Needs) -> int:
    """Return how many tasks can run at once on the machines that there are."""

    def fit(has: dict[str, float]) -> int:
        wanted = (("CPU", needs.cpus), ("GPU", needs.gpus))
        return min((math.floor(has.get(n, 0) / need) for n, need in wanted if need), default=1)

    return sum(fit(machine["Resources"]) for machine in ray.nodes() if machine["Alive"])


class Window:
    """How many tasks Ray has at most: `most`, or `AHEAD` for each that can run."""

    def __init__(self, needs: Needs, most: int | None = None) -> None:
        self.needs, self.most = needs, most
        self.size, self.looked = 0, -math.inf

    def __call__(self) -> int:
        """Return the size at this moment."""
        if self.most is not None:
            return self.most
        if time.monotonic() - self.looked > LOOK:
            self.size = AHEAD * max(1, slots(self.needs))
            self.looked = time.monotonic()
        return self.size


def dispatch(
    segments: Iterable[int], submit: Callable[[int], ray.ObjectRef], window: Callable[[], int]
) -> Iterator[tuple[int, Done | str]]:
    """Yield each of `segments` once, as it ends, with its result or the reason of its failure.

    `submit` hands a segment to Ray, which has at most `window()` of them at a time.
    """
    ended: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    waiting = iter(segments)
    # Segment by segment, so that Ray keeps them for as long as they are wanted.
    running: dict[int, ray.ObjectRef] = {}
    try:
        while True:
            while len(running) < window() and (segment := next(waiting, None)) is not None:
                running[segment] = submit(segment)
                running[segment].future().add_done_callback(
                    lambda future, segment=segment: ended.put((segment, future))
                )
            if not running:
                return
            try:
                segment, future = ended.get(timeout=LOOK)
            except queue.Empty:
                continue
            del running[segment]
            yield segment, outcome(future)
    finally:
        if ray.is_initialized():
            for task in running.values():
                ray.cancel(task, force=True)


def outcome(future: Any) -> Done | str:
    """Return the result of a task that has ended, or why it has none."""
    try:
        return future.result()
    except RayTaskError as error:
        return str(error.cause)
    except RayError as error:
        return str(error).strip().splitlines()[0]
    except RuntimeError as error:
        return str(error)


def submitter(work: Work, needs: Needs) -> Callable[[int], ray.ObjectRef]:
    """Return what hands a segment of `work` to Ray."""
    task = ray.remote(
        num_cpus=needs.cpus,
        num_gpus=needs.gpus,
        max_retries=needs.retries,
        retry_exceptions=True,
    )(node.restore)
    shared = ray.put(work)
    return lambda segment: task.options(name=f"segment {segment}").remote(shared, segment)
