# SPDX-License-Identifier: MPL-2.0

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from conftest import ROOT, skip_or_fail
from starsr.evaluation.upscalers import find_program
from starsr.farm import cli, node, simulate
from starsr.farm.cli import FarmError
from starsr.farm.node import SegmentError, Work

# Ray's nodes talk on the loopback interface only, as they do where it supports no clusters.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
try:
    import ray
    from ray.cluster_utils import Cluster

    from starsr.farm.driver import Needs, Window, dispatch, slots, submitter
except ImportError:
    ray = None

#: Of each node of a cluster.
SMALL = {"object_store_memory": 80 << 20}
RECIPES = ROOT / "examples" / "farm"
STAND_IN = Path(__file__).with_name("stand_in_starsr.py")


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs, and three nodes with one each, on this machine."""
    if ray is None:
        skip_or_fail("Ray; run pip install 'starsr[farm]'")
    head = {"num_cpus": 0, "include_dashboard": False, **SMALL}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.nodes = [add_node(cluster) for _ in range(3)]
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def add_node(cluster):
    return cluster.add_node(num_cpus=1, **SMALL)


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "starsr"
    path.write_text(f"#!{sys.executable} -SE\n" + STAND_IN.read_text())
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def make_job(tmp_path):
    """Make a job of the stand-in."""

    def make(segments, seconds=0.0, broken=(), held=None):
        folder = tmp_path / "job"
        for name in node.FOLDERS:
            (folder / name).mkdir(parents=True)
        (folder / "frames.bin").write_bytes(b"")
        plan = {
            "segments": segments,
            "seconds": seconds,
            "broken": broken,
            "held": held,
            "log": str(tmp_path),
        }
        (folder / "plan.json").write_text(json.dumps(plan))
        return folder

    return make


def options(program, job, *words):
    """Options of the command, for one CPU a task."""
    line = [f"--job={job}", f"--program={program}", "--cpus=1", "--quiet", *map(str, words)]
    parsed = cli.parser().parse_args(line)
    parsed.words = ()
    return parsed


def counts(path):
    """How often the stand-in noted each segment."""
    return Counter(int(line.split()[0]) for line in path.read_text().splitlines())


def kill_its_worker(segment, log):
    """Kill the worker that restores a held segment, and let go of it once it has begun again."""

    def workers():
        began = [line.split() for line in (log / "began").read_text().splitlines()]
        return [int(worker) for number, worker in began if int(number) == segment]

    def wait(times):
        while not (log / "began").exists() or len(workers()) < times:
            time.sleep(0.01)

    wait(1)
    os.kill(workers()[0], signal.SIGKILL)
    wait(2)
    (log / "go").touch()


def film(segments, source=""):
    return "".join(f"{source}part {segment}\n" for segment in range(segments))


def test_nodes_and_workers_may_die_and_come(cluster, program, make_job, tmp_path):
    job = make_job(30, 0.5, held=7)
    threading.Thread(target=kill_its_worker, args=(7, tmp_path), daemon=True).start()
    ray.init(address=cluster.address, log_to_driver=False)
    needs = Needs(cpus=1)
    assert slots(needs) == 3 and Window(needs)() == 6 and slots(Needs(gpus=1)) == 0
    restore = submitter(Work(program, str(job)), needs)
    submitted, results = [], []

    def submit(segment):
        submitted.append(segment)
        return restore(segment)

    for segment, done in dispatch(range(30), submit, lambda: 5):
        assert not isinstance(done, str), done
        results.append(segment)
        assert len(submitted) - len(results) < 5, "no more in flight than the window"
        if len(results) == 10:
            cluster.remove_node(cluster.nodes.pop(), allow_graceful=False)
        if len(results) == 15:
            cluster.nodes.append(add_node(cluster))
    ray.shutdown()
    assert sorted(results) == sorted(submitted) == list(range(30))
    # What was lost was begun again; no part was made twice.
    assert counts(tmp_path / "began")[7] >= 2
    assert counts(tmp_path / "done") == dict.fromkeys(range(30), 1)
    output = tmp_path / "film"
    cli.run(options(program, job, output))
    assert output.read_text() == film(30)
    assert not list((job / "parts").glob(".*"))


def test_a_failed_segment_is_tried_again_and_the_rest_goes_on(cluster, program, make_job, tmp_path):
    job = make_job(8, broken=[3])
    (job / "parts" / "000001.part").write_text("")
    (job / "parts" / "000002.part").write_text("part 2\n")
    command = options(program, job, tmp_path / "film", f"--address={cluster.address}")
    command.retries = 2
    with pytest.raises(FarmError, match=r"1 of 8 segments are missing.* 3: it is broken"):
        cli.run(command)
    assert not (tmp_path / "film").exists()
    # A damaged part is made again, one that is there is not.
    assert counts(tmp_path / "began") == {0: 1, 1: 1, 3: 3, 4: 1, 5: 1, 6: 1, 7: 1}


def test_a_store_needs_no_shared_folder(cluster, program, make_job, tmp_path):
    job, store, cache = make_job(6), tmp_path / "store", tmp_path / "cache"
    source = tmp_path / "away" / "in.txt"
    source.parent.mkdir()
    source.write_text("film ")
    command = options(
        program,
        job,
        tmp_path / "film",
        f"--address={cluster.address}",
        f"--store=file://{store}",
        f"--input=file://{source}",
        f"--cache={cache}",
    )
    cli.run(command)
    assert (tmp_path / "film").read_text() == film(6, "film ")
    assert len(list(cache.glob("*/in.txt"))) == 1
    assert not list(cache.glob("*/job/parts/*")) and not list((store / "parts").glob(".*"))
    # All parts are in the store: another driver only takes them.
    for part in (job / "parts").iterdir():
        part.unlink()
    (tmp_path / "film").unlink()
    cli.run(command)
    assert counts(tmp_path / "done") == dict.fromkeys(range(6), 1)
    (job / "plan.json").write_text((job / "plan.json").read_text().replace("0.0", "0.1"))
    (tmp_path / "film").unlink()
    with pytest.raises(FarmError, match="another plan"):
        cli.run(command)


def test_the_program_gives_the_same_film_as_alone(cluster, tmp_path):
    program = find_program()
    if program is None:
        skip_or_fail("the program starsr; run make build")
    clip, job = tmp_path / "in.mkv", tmp_path / "job"
    pipeline = (
        "gst-launch-1.0 -q videotestsrc num-buffers=24 pattern=ball ! "
        "video/x-raw,width=64,height=48 ! x264enc bframes=2 key-int-max=8 ! "
        f"matroskamux ! filesink location={clip}"
    )
    subprocess.run(pipeline.split(), check=True)
    model = ROOT / "crates" / "starsr-testkit" / "fixtures" / "tiny"
    settings = ["--encoder=avenc_ffv1", "--segment-length=8", f"--model={model}"]
    alone = tmp_path / "alone.mkv"
    other = tmp_path / "other"
    subprocess.run([program, "upscale", "-q", *settings, f"--job={other}", clip, alone], check=True)
    subprocess.run([program, "plan", "-q", *settings, f"--job={job}", clip], check=True)
    away = clip.rename(tmp_path / "away.mkv")
    store = [f"--store=file://{tmp_path / 'store'}", f"--input=file://{away}"]
    command = options(program, job, f"--address={cluster.address}", *store)
    command.cache = str(tmp_path / "cache")
    cli.run(command)
    away.rename(clip)
    cli.run(options(program, job, tmp_path / "farm.mkv"))
    assert (tmp_path / "farm.mkv").read_bytes() == alone.read_bytes()


def test_a_machine_fetches_once_and_again_what_has_changed(tmp_path):
    bundle, cache = tmp_path / "bundle", tmp_path / "cache"
    (bundle / "graphs").mkdir(parents=True)
    (bundle / "bundle.toml").write_text("one")
    (bundle / "graphs" / "a.onnx").write_text("a")
    url = f"file://{bundle}"
    first = node.fetch(url, cache)
    assert (first / "graphs" / "a.onnx").read_text() == "a"
    (first / "mark").write_text("")
    assert node.fetch(url, cache) == first and (first / "mark").exists()
    (bundle / "bundle.toml").write_text("other")
    second = node.fetch(url + "/", cache)
    assert second != first and (second / "bundle.toml").read_text() == "other"
    with pytest.raises(FileNotFoundError):
        node.fetch(f"file://{tmp_path}/nowhere", cache)
    assert not list(cache.rglob(node.UNFINISHED + "*"))


def test_errors_are_the_programs_sentences(program, tmp_path, make_job):
    with pytest.raises(SegmentError, match="nowhere: has no plan"):
        node.restore(Work(program, str(tmp_path / "nowhere")), 0)
    with pytest.raises(SegmentError, match="missing: No such file"):
        node.restore(Work("/missing", "job"), 0)
    with pytest.raises(FarmError, match="nowhere: has no plan"):
        cli.run(options(program, tmp_path / "nowhere"))
    with pytest.raises(FarmError, match="--program"):
        cli.run(options("/missing", make_job(1)))
    (tmp_path / "film").write_text("mine")
    with pytest.raises(FarmError, match="--force"):
        cli.run(options(program, tmp_path / "job", tmp_path / "film"))
    done = node.restore(Work(program, str(tmp_path / "job")), 0)
    assert (done.segment, done.frames) == (0, 10)
    assert node.restore(Work(program, str(tmp_path / "job")), 0).frames == 0


def run_recipe(command, program, **variables):
    """Run the command of a recipe, with the stand-in in the place of the program."""
    path = f"{Path(program).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, **variables}
    # Nothing comes from standard input, and the stand-in is not asked to end with it.
    subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=True)


def test_slurm_restores_a_segment_a_task(program, make_job):
    job = make_job(3)
    for segment in range(3):
        task = {"SLURM_ARRAY_TASK_ID": str(segment), "SLURM_CPUS_PER_TASK": "2"}
        run_recipe([RECIPES / "slurm.sh", job], program, **task)
    cli.run(options(program, job, job / "film"))
    assert (job / "film").read_text() == film(3)


def test_kubernetes_restores_a_segment_a_pod(program, make_job):
    manifest = yaml.safe_load((RECIPES / "kubernetes.yaml").read_text())
    spec = manifest["spec"]
    assert manifest["kind"] == "Job" and spec["completionMode"] == "Indexed"
    (container,) = spec["template"]["spec"]["containers"]
    job = make_job(3)
    command = [word.replace("/film/job", str(job)) for word in container["command"]]
    assert str(job) in " ".join(command)
    for segment in range(3):
        run_recipe(command, program, JOB_COMPLETION_INDEX=str(segment))
    cli.run(options(program, job, job / "film"))
    assert (job / "film").read_text() == film(3)


def test_parallel_restores_all_segments(program, make_job):
    if not shutil.which("parallel"):
        skip_or_fail("GNU parallel; run tools/install-system tests")
    job = make_job(5)
    run_recipe([RECIPES / "parallel.sh", job, "--jobs", "3"], program)
    cli.run(options(program, job, job / "film"))
    assert (job / "film").read_text() == film(5)


def test_a_simulated_farm_is_as_fast_as_its_slowest_part():
    assert simulate.elapsed([10.0] * 20, 1, 0.0) == 200
    assert simulate.elapsed([10.0] * 20, 20, 0.0) == 10
    assert simulate.elapsed([10.0] * 21, 20, 0.0) == 20
    # A driver of 3 s a segment keeps three workers or four busy.
    assert simulate.elapsed([10.0] * 20, 20, 3.0) == 70
    costs = simulate.Costs(twice=30, start=1.0, join=0.5)
    lines = simulate.table(costs, 1000, 10.0, 300, 0.0)
    assert lines[2] == "| 1 | 3:20:00 | 1.0 | 100.0% | 3.3 | 3:28:20 | 1.0 |"
    assert lines[-3] == "| 1,000 | 0:00:12 | 1,000.0 | 100.0% | 3.3 | 0:08:32 | 24.4 |"
    assert lines[-1].endswith("segments add 20.0%.")
    assert simulate.line([1, 2, 3], [5, 7, 9]) == 3
