# SPDX-License-Identifier: MPL-2.0

import shlex
import shutil
import sys
from fractions import Fraction

import numpy as np
import pytest

from conftest import ROOT, skip_or_fail
from starsr.bundle.noise import chacha8, frame_noise
from starsr.data.clips import pan
from starsr.data.media import VideoError, read_photo, read_video, write_lossless
from starsr.evaluation import upscalers
from starsr.evaluation.upscalers import UpscalerError, make


@pytest.fixture
def clip(photos):
    """`[3,30,40,3]`, so smooth that all scalers agree about it."""
    return pan(read_photo(photos / "photo0.png"), 3, (30, 40), np.random.default_rng(0), 4.0)


def test_clips_survive_files(clip, tmp_path):
    path = tmp_path / "a b" / "clip.mkv"
    write_lossless(path, clip, Fraction(30000, 1001))
    read, rate = read_video(path)
    assert np.array_equal(read, clip) and rate == Fraction(30000, 1001)
    assert np.array_equal(read_video(path, 2)[0], clip[:2])
    assert [p.name for p in path.parent.iterdir()] == ["clip.mkv"]
    path.write_text("no video")
    with pytest.raises(VideoError, match="check the file"):
        read_video(path)


@pytest.mark.parametrize(
    "name", ["lanczos", "videoscale:catrom", "ffmpeg:spline", "ffmpeg:bicubic", "ffmpeg:lanczos"]
)
def test_scalers_agree_with_bicubic_about_the_position_of_pixels(clip, name):
    if not name.startswith("ffmpeg") and not shutil.which("gst-launch-1.0"):
        skip_or_fail("gst-launch-1.0; run tools/install-system")
    plain, result = make("bicubic")(clip), make(name)(clip)
    assert result.shape == plain.shape == (3, 120, 160, 3)
    difference = np.abs(result[:, 8:-8, 8:-8].astype(int) - plain[:, 8:-8, 8:-8])
    shifted = np.abs(result[:, 8:-8, 9:-7].astype(int) - plain[:, 8:-8, 8:-8])
    assert difference.mean() < 3 and difference.mean() < shifted.mean()


def test_a_command_line_is_run_on_files(clip, tmp_path):
    script = tmp_path / "double it.py"
    script.write_text(
        "import sys, numpy as np\n"
        f"sys.path.insert(0, {str(ROOT / 'python' / 'src')!r})\n"
        "from pathlib import Path\n"
        "from starsr.data.media import read_video, write_lossless\n"
        "clip, rate = read_video(Path(sys.argv[1]))\n"
        "write_lossless(Path(sys.argv[2]), clip.repeat(4, 1).repeat(4, 2), rate)\n"
    )
    line = f"{shlex.quote(sys.executable)} {shlex.quote(str(script))} {{input}} {{output}}"
    upscaler = make(f"mine=command:{line}")
    assert upscaler.label == "mine" and upscaler.command == line
    assert np.array_equal(upscaler(clip), clip.repeat(4, 1).repeat(4, 2))
    with pytest.raises(UpscalerError, match="3 frames of 40x30 instead of 3 frames of 160x120"):
        make("copy=command:cp {input} {output}")(clip)
    with pytest.raises(UpscalerError, match="status 7: broken"):
        make("command:echo broken >&2; exit 7; {input} {output}")(clip)


def test_noise_is_that_of_chacha():
    assert chacha8(bytes(32), 2).tolist() == [0x2FEF003E, 0xD6405F89]
    # The engine's tests of `diffusion::noise` have the same values.
    expected = [-0.21260266, -0.046228893, 0.07472609, -0.95136714, -0.54307234, 0.49299186]
    assert np.allclose(
        frame_noise(7, 11, 3, 300)[[0, 63, 64, 127, 128, 299]], expected, rtol=0, atol=3e-6
    )
    noise = frame_noise(3, 4, 0, 1000)
    assert np.array_equal(noise[:300], frame_noise(3, 4, 0, 300)) and abs(noise.std() - 1) < 0.1
    assert not np.array_equal(noise, frame_noise(3, 5, 0, 1000))


def test_a_bundle_in_python_is_the_reference(clip, nano_folder):
    upscaler = make(f"nano=bundle:{nano_folder}")
    result = upscaler(clip)
    assert result.shape == (3, 120, 160, 3) and np.array_equal(result, upscaler(clip))
    assert 0.1 < np.abs(result.astype(int) - make("bicubic")(clip)).mean() < 20
    assert upscaler.files == (nano_folder / "bundle.toml",)


def test_the_element_makes_what_the_file_holds_and_the_reference_makes(clip, nano_folder):
    if upscalers.find_program() is None:
        skip_or_fail("the program starsr; run `make build`")
    plain = make("starsr:--strength 0")(clip)
    assert np.abs(plain.astype(int) - make("bicubic")(clip)).max() <= 1
    restored = make(f"starsr:--model {shlex.quote(str(nano_folder))}")(clip)
    assert 0.1 < np.abs(restored.astype(int) - plain).mean() < 20
    # A difference of 1e-3 of the range, a quarter of a level, would change a quarter of the values.
    difference = np.abs(restored.astype(int) - make(f"bundle:{nano_folder}")(clip))
    print(
        "the element and Python differ by a level in "
        f"{100 * (difference > 0).mean():.3f} % of the values"
    )
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nearest", "no upscaler nearest; choose bicubic, lanczos"),
        ("ffmpeg:x", "no scaler `x`; choose one of fast_bilinear"),
        ("command:cat {input}", "write both where"),
        ("bundle:nowhere", "nowhere is no model bundle"),
    ],
)
def test_errors_say_what_to_do(name, words):
    with pytest.raises(UpscalerError, match=words):
        make(name)


def test_missing_programs_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UpscalerError, match=r"apt-get install gstreamer1\.0-tools"):
        make("lanczos")
    with pytest.raises(UpscalerError, match="make build"):
        make("starsr", tmp_path / "starsr")
