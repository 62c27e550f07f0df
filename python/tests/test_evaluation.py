# SPDX-License-Identifier: MPL-2.0
"""`starsr-eval` from clips to the report."""

import json
import re
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from starsr.data.clips import pan
from starsr.data.media import read_photo, read_video, write_lossless
from starsr.data.pairs import write_pair
from starsr.evaluation import cli, metrics, report, sources, study
from starsr.evaluation.upscalers import Upscaler, make


@pytest.fixture
def media(photos, tmp_path):
    """A folder of two photographs, one of them held out."""
    folder = tmp_path / "media" / "kodak"
    folder.mkdir(parents=True)
    for name, photo in (("03", "photo0"), ("18", "photo1")):
        Image.open(photos / f"{photo}.png").resize((480, 400)).save(folder / f"{name}.png")
    return folder.parent


@pytest.fixture
def paired(photos, tmp_path):
    """A folder with two clips in `gt` and `lq`."""
    folder = tmp_path / "pairs"
    for index in range(2):
        photo = read_photo(photos / f"photo{index}.png")
        high = pan(photo, 9, (128, 160), np.random.default_rng(index), 1.2)
        low, _ = sources.degrade(high, "medium", np.random.default_rng(index))
        write_pair(folder, f"clip {index}", high, low, "smooth noise")
    return folder


def run(*arguments):
    return cli.main([str(a) for a in arguments])


def refused(capsys, *arguments):
    """Return the one sentence with which the command refuses."""
    assert run(*arguments) == 1
    message = capsys.readouterr().err.strip()
    assert (
        message.startswith("starsr-eval: ") and "\n" not in message and "Traceback" not in message
    )
    return message


def test_report_of_pairs_and_of_a_clip_alone(paired, tmp_path, capsys):
    target = tmp_path / "report"
    alone = paired / "lq" / "clip 0.mkv"
    options = [
        "--upscaler",
        "bicubic",
        "--upscaler",
        "sharp=ffmpeg:lanczos",
        "--metric",
        "lpips",
        "--window",
        5,
        1,
    ]
    assert run(paired, alone, "--report", target, *options) == 0
    output = capsys.readouterr()
    assert (
        "LPIPS is not measured" in output.err
        and "sharp" in output.out
        and "index.html" in output.out
    )
    record = json.loads((target / "report.json").read_text())
    assert [(c["group"], c["name"]) for c in record["clips"]] == [
        ("pairs", "clip 0"),
        ("pairs", "clip 1"),
        ("real", "clip 0"),
    ]
    means = record["means"]["pairs"]
    assert set(means) == {"bicubic", "sharp", "ground truth"}
    assert set(means["bicubic"]) == set(metrics.FIGURES) and None not in means["bicubic"].values()
    assert means["bicubic"]["gain"] == 0 != means["sharp"]["gain"]
    least = min(c["figures"]["sharp"]["gain"] for c in record["clips"][:2])
    assert f"least gain {least:.2f}" in output.out
    assert means["ground truth"]["warp"] < 1e-6 < means["bicubic"]["warp"]
    each = [c["figures"]["bicubic"]["psnr"] for c in record["clips"][:2]]
    assert means["bicubic"]["psnr"] == pytest.approx(np.mean(each)) and 15 < each[0] < 45
    assert (
        len(record["clips"][0]["psnr"]["sharp"]) == 9
        and len(record["clips"][2]["warp"]["sharp"]) == 8
    )
    assert set(record["means"]["real"]["sharp"]) == {"warp", "seam", "grid4", "grid8"}
    manifest = record["manifest"]
    assert (
        manifest["seed"] == 0
        and "--window 5 1" in manifest["command"]
        and manifest["versions"]["numpy"] == np.__version__
    )
    assert manifest["upscalers"][1]["command"] == "libswscale lanczos"
    assert record["not_measured"]["lpips"].count("pip install pyiqa") == 1
    html = (target / "index.html").read_text()
    assert html.count("smooth noise") == 2
    assert not re.findall(r"(?:src|href)=\"(?:https?:)?//", html)
    files = set(re.findall(r"(?:src|value)=\"(images/[^\"]+)\"", html))
    assert len(files) > 30 and all((target / name).is_file() for name in files)
    assert html.count('<section class="card clip"') == 3


def test_figures_of_the_report_are_those_of_the_results(paired, tmp_path):
    target = tmp_path / "report"
    assert (
        run(paired, "--report", target, "--upscaler", "bicubic", "--metric", "none", "--frames", 4)
        == 0
    )
    figures = json.loads((target / "report.json").read_text())["clips"][0]["figures"]["bicubic"]
    truth, _ = read_video(paired / "gt" / "clip 0.mkv", 4)
    result = make("bicubic")(read_video(paired / "lq" / "clip 0.mkv", 4)[0])
    assert np.array_equal(
        read_video(target / "results" / "bicubic" / "pairs-clip-0.mkv")[0], result
    )
    assert figures["psnr"] == pytest.approx(metrics.fidelity(result, truth)["psnr"], abs=1e-9)
    assert figures["sharpness"] == pytest.approx(metrics.sharpness(result, truth), abs=1e-9)
    assert figures["seam"] is None and figures["grid4"] <= 1


def test_clips_are_degraded_with_a_seed(media, tmp_path):
    def low(seed, folder, *more):
        options = [
            "--degrade",
            "light",
            *more,
            "--media",
            media,
            "--frames",
            2,
            "--clips",
            1,
            "--metric",
            "none",
        ]
        assert (
            run("--report", tmp_path / folder, "--upscaler", "bicubic", "--seed", seed, *options)
            == 0
        )
        record = json.loads((tmp_path / folder / "report.json").read_text())
        return [(c["name"], c["group"], c["note"], c["figures"]) for c in record["clips"]]

    first = low(1, "a", "--degrade", "mild")
    assert [c[:2] for c in first] == [("kodak/18", "light"), ("kodak/18", "mild")]
    assert first[0][2].startswith("light: ") and "libx264" in first[1][2]
    assert low(1, "b") == first[:1] != low(2, "c")
    # Only random degradations are drawn again.
    drawn = low(1, "d", "--degrade", "clean", "--draws", 2)
    assert [c[:2] for c in drawn] == [
        ("kodak/18", "light"),
        ("kodak/18 draw 2", "light"),
        ("kodak/18", "clean"),
    ]
    assert drawn[0] == first[0] and drawn[1][2] != first[0][2]


def test_summary_of_a_group_in_which_some_clips_have_no_truth():
    figures = [{"nano": {"psnr": 30.0, "gain": 0.5, "warp": 1.0}}, {"nano": {"warp": 2.0}}]
    text = cli.summary([SimpleNamespace(group="real", figures=clip) for clip in figures])
    assert "E*warp 1.500" in text and "gain 0.50 ±0.00" in text and "least gain 0.50" in text


def test_results_are_used_again_until_what_made_them_changes(tmp_path):
    low = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    clip = sources.Clip("a/b", "group", low, Fraction(25))
    model = tmp_path / "model"
    model.write_text("1")
    calls = []

    def enlarge(low, _rate):
        calls.append(low)
        return low.repeat(4, 1).repeat(4, 2)

    def upscale(command="enlarge", clip=clip):
        return study.upscale(
            Upscaler("mine", command, enlarge, (model,)), clip, tmp_path / "results"
        )[0]

    assert np.array_equal(upscale(), upscale()) and len(calls) == 1
    upscale("enlarge more")
    assert len(calls) == 2
    model.write_text("2")
    upscale("enlarge more")
    assert len(calls) == 3
    upscale("enlarge more", sources.Clip("a/b", "group", low + 1, Fraction(25)))
    assert len(calls) == 4
    assert sorted(p.name for p in (tmp_path / "results" / "mine").iterdir()) == [
        "group-a-b.json",
        "group-a-b.mkv",
    ]


def test_best_of_a_column():
    table: dict[str, study.Row] = {
        "a": {"x": 1.004, "y": 0.7},
        "b": {"x": 1.0, "y": 0.9},
        "c": {"x": 3.0, "y": None},
    }
    table[study.TRUTH] = {"x": 9.0, "y": 0.0}
    assert study.best(table, "x", metrics.Figure("x", "max", 2, "")) == {"c"}
    assert study.best(table, "x", metrics.Figure("x", "min", 2, "")) == {"a", "b"}
    assert study.best(table, "y", metrics.Figure("y", "one", 2, "")) == {"b"}
    assert study.best(table, "x", metrics.Figure("x", "limit", 2, "")) == {"a", "b"}
    assert study.best(table, "y", metrics.Figure("y", "limit", 2, "")) == set()
    assert study.best({"a": {"x": 1.0}}, "x", metrics.Figure("x", "max", 2, "")) == set()


def test_chart_places_values():
    made = report.chart("PSNR", {"a": [20.0, 25.0, None], "b": [21.0, 22.0, 30.0]})
    assert made is not None
    (_, a), (_, b) = made.lines
    assert len(a) == 2 and len(b) == 3 and a[0][0] == b[0][0] and b[2][0] > b[1][0]
    assert b[2][1] < a[1][1] < a[0][1] and all(0 <= y <= 200 for _, y, _ in a + b)
    assert made.ticks[0][1] == "20" and made.ticks[-1][1] == "30" and "frame 1: 25.0" in a[1][2]
    assert report.chart("nothing", {"a": [None, None]}) is None and report.chart(
        "still", {"a": [5.0, 5.0]}
    )


def test_crops_show_detail_and_difference(photos):
    reference = np.full((300, 400, 3), 128, np.uint8)
    reference[20:80, 300:360] = read_photo(photos / "photo0.png")[:60, :60]
    other = reference.copy()
    other[220:260, 40:80] += 40
    (x0, y0), (x1, y1) = report.interesting(reference, [reference, other])
    assert x0 <= 300 and x0 + report.CROP >= 360 and y0 <= 20 and y0 + report.CROP >= 80
    assert x1 <= 40 and x1 + report.CROP >= 80 and y1 <= 220 and y1 + report.CROP >= 260
    small = reference[:40, :50]
    assert report.interesting(small, [small]) == [(0, 0)]


def test_errors_are_one_sentence(paired, photos, tmp_path, capsys):
    target = ["--report", tmp_path / "report", "--upscaler", "bicubic", "--metric", "none"]
    assert "give --draws 1 or more" in refused(
        capsys, "--degrade", "light", "--media", photos, "--draws", 0, *target
    )
    assert "nothing to evaluate; name clips" in refused(capsys, *target)
    assert "with --media" in refused(capsys, "--degrade", "light", *target)
    assert "none of the photographs" in refused(
        capsys, "--degrade", "light", "--media", photos, *target
    )
    assert "holds no videos" in refused(capsys, photos, *target)
    assert "two clips of real are called clip-0" in refused(
        capsys, *[paired / "lq" / "clip 0.mkv"] * 2, *target
    )
    assert "name one LABEL=bicubic" in refused(capsys, paired, "--upscaler", "bicubic", *target)
    assert "--frames 2 or more" in refused(capsys, paired, "--frames", 1, *target)
    assert "cannot overlap by 6" in refused(capsys, paired, "--window", 6, 6, *target)
    (paired / "gt" / "clip 1.mkv").unlink()
    assert "clip 1.mkv has no ground truth" in refused(capsys, paired, *target)
    write_lossless(paired / "gt" / "clip 1.mkv", np.zeros((9, 32, 40, 3), np.uint8))
    assert "do not fit together" in refused(capsys, paired, *target)
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    assert "broken.mp4 could not be read as video" in refused(capsys, broken, *target)
