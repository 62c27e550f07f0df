# SPDX-License-Identifier: MPL-2.0
"""Outside metrics, with stand-ins for their packages and without them."""

import importlib.util
import json
import sys
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from starsr.evaluation import optional


@pytest.fixture
def clips():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 256, (2, 34, 41, 3), np.uint8)
    return np.clip(target.astype(int) + 5, 0, 255).astype(np.uint8), target


def executable(path, text):
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)


@pytest.fixture
def nothing(monkeypatch, tmp_path):
    """Hide all packages, programs and checkouts."""
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DOVER", str(tmp_path / "DOVER"))


def test_each_missing_metric_says_why_and_how_to_get_it(nothing):
    scorers, missing = optional.load(list(optional.METRICS))
    assert not scorers and set(missing) == set(optional.METRICS)
    for name, line in missing.items():
        assert line.startswith(optional.METRICS[name].figure.title) and "\n" not in line
        assert f"to get it: {optional.METRICS[name].get}" in line
    assert (
        "pyiqa is not installed" in missing["lpips"]
        and "create_metric('musiq')" in missing["musiq"]
    )
    assert "DOVER.pth" in missing["dover"] and "PATH" in missing["vmaf"]


def fake_pyiqa(monkeypatch, create):
    monkeypatch.setitem(
        sys.modules,
        "pyiqa",
        SimpleNamespace(create_metric=create, __spec__=SimpleNamespace(name="pyiqa")),
    )


def test_pyiqa_gets_frames_and_the_ground_truth_where_it_needs_one(monkeypatch, clips):
    def create(name, device):
        assert device == "cpu"
        return (
            (lambda a, b: (a - b).abs().max())
            if name == "lpips"
            else (lambda a: a.shape[1] + a.max())
        )

    fake_pyiqa(monkeypatch, create)
    scorers, missing = optional.load(["lpips", "musiq"])
    assert not missing
    assert scorers["lpips"](*clips) == pytest.approx(5 / 255, abs=1e-6)
    assert scorers["musiq"](*clips) == scorers["musiq"](clips[0], None) == 4


def test_weights_are_not_downloaded(monkeypatch):
    reached = []

    def create(name, device):
        print("Downloading")
        urllib.request.urlopen("http://localhost:9/weights.pth")
        reached.append(name)

    fake_pyiqa(monkeypatch, create)
    scorers, missing = optional.load(["dists"])
    assert not scorers and not reached
    assert "its weights are missing" in missing["dists"] and "downloads are off" in missing["dists"]


def test_dover_runs_its_own_program(monkeypatch, tmp_path, clips):
    (tmp_path / "pretrained_weights").mkdir()
    monkeypatch.setenv("DOVER", str(tmp_path))
    (tmp_path / "pretrained_weights" / "DOVER.pth").touch()
    script = tmp_path / "evaluate_one_video.py"
    script.write_text(
        "import sys, av\n"
        "path = sys.argv[sys.argv.index('--video_path') + 1]\n"
        "assert '--fusion' in sys.argv\n"
        "frames = sum(1 for _ in av.open(path).decode(video=0))\n"
        "print('Normalized fused overall score (scale in [0,1]):', frames / 8)\n"
    )
    scorers, missing = optional.load(["dover"])
    assert not missing and scorers["dover"](*clips) == 0.25
    script.write_text("raise SystemExit('no decord')")
    with pytest.raises(RuntimeError, match="status 1: no decord"):
        scorers["dover"](*clips)


def test_vmaf_gets_both_clips(monkeypatch, tmp_path, clips):
    monkeypatch.setenv("PATH", str(tmp_path))
    executable(
        tmp_path / "vmaf",
        "import json, sys\n"
        "option = lambda name: sys.argv[sys.argv.index(name) + 1]\n"
        "data = [open(option(name), 'rb').read() for name in ('--reference', '--distorted')]\n"
        "assert 'neg' in option('--model')\n"
        "head = data[0].split(b'\\n')[0]\n"
        "size = len(head) + 1 + 2 * (6 + 34 * 40 * 3 // 2)\n"
        "assert b'W40 H34' in head and all(len(d) == size for d in data) and data[0] != data[1]\n"
        "json.dump({'pooled_metrics': {'vmaf': {'mean': 91.5}}}, open(option('--output'), 'w'))\n",
    )
    scorers, missing = optional.load(["vmaf"])
    assert not missing and scorers["vmaf"](*clips) == 91.5
    executable(tmp_path / "vmaf", "raise SystemExit('bad model')")
    with pytest.raises(RuntimeError, match="status 1: bad model"):
        scorers["vmaf"](*clips)


def test_vmaf_runs_in_the_ffmpeg_of_a_package(monkeypatch, tmp_path, clips):
    monkeypatch.setenv("PATH", str(tmp_path))
    program = tmp_path / "ffmpeg"
    executable(
        program,
        "import json, sys\n"
        "inputs = [sys.argv[i + 1] for i, word in enumerate(sys.argv) if word == '-i']\n"
        "assert [name.split('/')[-1] for name in inputs] == ['distorted.y4m', 'reference.y4m']\n"
        "graph = sys.argv[sys.argv.index('-lavfi') + 1]\n"
        "assert graph.startswith('libvmaf=model=version=vmaf_v0.6.1neg')\n"
        "path = graph.split('log_path=')[1]\n"
        "json.dump({'pooled_metrics': {'vmaf': {'mean': 73.5}}}, open(path, 'w'))\n",
    )
    package = SimpleNamespace(
        get_ffmpeg_exe=lambda: str(program), __spec__=SimpleNamespace(name="imageio_ffmpeg")
    )
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", package)
    scorers, missing = optional.load(["vmaf"])
    assert not missing and scorers["vmaf"](*clips) == 73.5


def test_stlpips_compares_every_fourth_frame_in_its_range(monkeypatch, clips):
    def network(net, variant, verbose):
        assert net in ("vgg", "alex") and variant == "shift_tolerant" and not verbose

        class Metric:
            def eval(self):
                return self

            def __call__(self, a, b):
                assert a.shape == (1, 3, 34, 41) and -1 <= a.min() < -0.9 and 0.9 < b.max() <= 1
                return (a - b).abs().max()

        return Metric()

    module = SimpleNamespace(LPIPS=network)
    package = SimpleNamespace(stlpips=module, __spec__=SimpleNamespace(name="stlpips_pytorch"))
    monkeypatch.setitem(sys.modules, "stlpips_pytorch", package)
    monkeypatch.setitem(sys.modules, "stlpips_pytorch.stlpips", module)
    scorers, missing = optional.load(["stlpips", "stlpips-alex"])
    assert not missing
    result, target = (np.concatenate([clip] * 3) for clip in clips)
    result[1:4] = 0
    for name in ("stlpips", "stlpips-alex"):
        assert scorers[name](result, target) == pytest.approx(10 / 255, abs=1e-6)
        with pytest.raises(ValueError, match="ground truth"):
            scorers[name](result, None)


def test_ssimulacra2_gets_pictures_without_loss(monkeypatch, clips):
    def compute(original, distorted):
        a, b = (np.asarray(Image.open(file)).astype(int) for file in (original, distorted))
        assert a.shape == (34, 41, 3)
        return 100.0 - (b - a).max()

    package = SimpleNamespace(
        compute_ssimulacra2=compute, __spec__=SimpleNamespace(name="ssimulacra2")
    )
    monkeypatch.setitem(sys.modules, "ssimulacra2", package)
    scorers, missing = optional.load(["ssimulacra2"])
    assert not missing
    result, target = (np.concatenate([clip] * 3) for clip in clips)
    result[1:4] = 0
    assert scorers["ssimulacra2"](result, target) == 95
    assert scorers["ssimulacra2"](target, target) == 100
    with pytest.raises(ValueError, match="ground truth"):
        scorers["ssimulacra2"](result, None)


def test_brisque_gets_numbers_from_arrays_of_one(monkeypatch, clips):
    class Brisque:
        def __init__(self, url):
            assert not url

        def scale_features(self, features):
            assert [type(feature) for feature in features] == [np.float64, np.float64]
            return np.sum(features)

        def score(self, frame):
            assert frame.shape == (34, 41, 3)
            return self.scale_features([np.array([frame.mean()]), np.array(1.0)])

    for name in ("libsvm", "cv2"):
        module = SimpleNamespace(__spec__=SimpleNamespace(name=name))
        monkeypatch.setitem(sys.modules, name, module)
    package = SimpleNamespace(BRISQUE=Brisque, __spec__=SimpleNamespace(name="brisque"))
    monkeypatch.setitem(sys.modules, "brisque", package)
    scorers, missing = optional.load(["brisque"])
    assert not missing
    assert scorers["brisque"](clips[0], None) == pytest.approx(clips[0][0].mean() + 1)
    monkeypatch.delitem(sys.modules, "libsvm")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "libsvm" else package.__spec__
    )
    assert "libsvm-official is not installed" in optional.load(["brisque"])[1]["brisque"]


def test_figures_are_described():
    for name, metric in optional.METRICS.items():
        assert metric.figure.best in ("max", "min") and metric.figure.meaning.endswith("."), name
    assert json.dumps(list(optional.METRICS))
