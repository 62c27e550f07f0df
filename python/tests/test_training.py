# SPDX-License-Identifier: MPL-2.0

import csv
import math
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from starsr.data.clips import pan
from starsr.data.media import read_photo
from starsr.data.resize import bicubic
from starsr.degradation import first_order as d
from starsr.models.nano.network import Nano, NanoConfig
from starsr.training import cli
from starsr.training.dataset import Clips
from starsr.training.loop import OPTIMIZERS, Options, Schedule, generator_of, run
from starsr.training.losses import (
    SEPARATIONS,
    DfConfig,
    df_loss,
    df_weight,
    flicker_loss,
    grid_loss,
    low_pass,
    translation,
    v_loss,
)
from starsr.training.nano import NanoOptions, NanoTask, Pool, to_latents


def test_df_loss_has_a_gradient():
    predicted = torch.rand(1, 2, 3, 32, 32, requires_grad=True)
    df_loss(predicted, torch.rand(1, 2, 3, 32, 32), torch.tensor([300.0])).sum().backward()
    assert predicted.grad.abs().min() > 0


def test_df_loss_weighs_low_frequencies_early_and_high_ones_late():
    wave = torch.cos(torch.arange(64) * 2 * torch.pi / 64).expand(1, 1, 3, 64, 64)
    checks = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(32, 32).expand(1, 1, 3, 64, 64)
    zero = torch.zeros(1, 1, 3, 64, 64)
    early, late = torch.tensor([999.0]), torch.tensor([10.0])
    assert df_loss(wave, zero, early) > 3 * df_loss(wave, zero, late)
    assert df_loss(checks - 0.5, zero, late) > 3 * df_loss(checks - 0.5, zero, early)
    assert df_weight(early) == 0 and df_weight(torch.tensor([0.0])) == 1


@pytest.mark.parametrize("kind", ["direct", "inverse", "unseparated"])
def test_df_loss_gradient_matches_finite_differences(kind):
    generator = torch.Generator().manual_seed(0)
    predicted, target = (
        torch.rand((1, 1, 3, 16, 16), generator=generator).double() for _ in range(2)
    )
    t, config = torch.tensor([400.0]), DfConfig(kind)
    predicted.requires_grad_()
    df_loss(predicted, target, t, config).sum().backward()
    direction = torch.randn(predicted.shape, generator=generator).double()
    step = 1e-6
    with torch.no_grad():
        ends = [df_loss(predicted + sign * step * direction, target, t, config) for sign in (1, -1)]
    slope = float((ends[0] - ends[1]) / (2 * step))
    assert float((predicted.grad * direction).sum()) == pytest.approx(slope, rel=1e-4)


def test_psi_passes_a_low_grating_and_stops_a_high_one():
    x = torch.arange(64)
    for cycles, passed in [(2, True), (28, False)]:
        grating = torch.cos(2 * torch.pi * cycles * x / 64).expand(64, 64)
        spectrum = torch.fft.rfft2(grating)
        kept = (
            low_pass(64, 64, 0.25, torch.device("cpu")) * spectrum
        ).abs().sum() / spectrum.abs().sum()
        assert (kept > 0.95) if passed else (kept < 0.05)


def test_df_loss_kinds_differ_as_they_say():
    generator = torch.Generator().manual_seed(0)
    predicted, target = (torch.rand((1, 1, 3, 32, 32), generator=generator) for _ in range(2))
    at = {
        k: float(df_loss(predicted, target, torch.tensor([999.0]), DfConfig(k)))
        for k in SEPARATIONS[:4]
    }
    late = {
        k: float(df_loss(predicted, target, torch.tensor([0.0]), DfConfig(k)))
        for k in SEPARATIONS[:4]
    }
    assert at["direct"] == pytest.approx(late["inverse"]) and at["inverse"] == pytest.approx(
        late["direct"]
    )
    assert at["unseparated"] == late["unseparated"]
    assert df_weight(torch.tensor([999.0]), DfConfig(falling=False, beta=2.0)) == 2
    with pytest.raises(ValueError, match="upside-down"):
        DfConfig("upside-down")


def test_low_pass_falls_with_frequency():
    mask = low_pass(64, 64, 0.25, torch.device("cpu"))
    assert mask[0, 0] > 0.99 and mask[0, -1] < 0.01 and mask[32, 0] < 0.01
    assert (mask[0].diff() <= 0).all()


def test_v_loss_is_bounded_for_clean_timesteps():
    v = torch.ones(1, 1, 1, 1, 1)
    sigma = torch.tensor([0.01])
    error = v_loss(v * 0.1 / 0.01, torch.zeros_like(v), sigma)
    assert error < 0.1


def test_grid_loss_sees_only_what_repeats():
    clean = torch.rand(1, 2, 3, 64, 64)
    pattern = torch.zeros(64, 64)
    pattern[::4, ::4] = 0.1
    noise = grid_loss(clean + 0.02 * torch.randn(clean.shape), clean)
    assert 0.005 < noise < 0.05
    assert grid_loss(clean + pattern, clean) > 20 * noise
    # The sign of the grid may change between patches, and patches without error do not hide it.
    pattern[:32, :32], pattern[32:, 32:] = -pattern[:32, :32], 0
    assert grid_loss(clean + pattern, clean) > 20 * noise
    assert grid_loss(clean + 0.3, clean) < 1e-10
    # A grid of 8 pixels is no grid of 4.
    blocks = torch.zeros(64, 64)
    blocks.view(8, 8, 8, 8)[:, :4] = 0.1
    assert grid_loss(clean + blocks, clean, 8) > 0.2 > 20 * grid_loss(clean + blocks, clean, 4)


def test_flicker_loss_follows_pans():
    generator = torch.Generator().manual_seed(0)
    large = torch.rand((1, 3, 80, 90), generator=generator)
    corners = [(10, 20), (7, 22), (4, 24)]
    clip = torch.stack([large[:, :, y : y + 64, x : x + 64] for y, x in corners], 1)
    assert translation(clip[:, 0], clip[:, 1]).tolist() == [[3, -2]]
    noise = torch.randn(clip.shape, generator=generator)
    dim = 0.5 * clip
    assert flicker_loss(dim, clip + 0.01 * noise, clip) == 0
    plain = dim + 0.01 * noise
    assert float(flicker_loss(dim + 0.02 * noise, plain, clip)) == pytest.approx(
        math.log(4 / 0.9), abs=0.01
    )
    # Other kinds of motion are left out.
    bent = torch.cat([clip[:, :2], torch.rand((1, 1, 3, 64, 64), generator=generator)], 1)
    assert flicker_loss(dim + 0.02 * noise, plain, bent) == 0
    assert flicker_loss(clip[:, :1], clip[:, :1], clip[:, :1]) == 0


def test_bicubic_agrees_with_pillow_inside():
    image = np.random.default_rng(0).random((24, 20), np.float32)
    expected = np.asarray(Image.fromarray(image).resize((80, 96), Image.Resampling.BICUBIC))
    actual = bicubic(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(actual[12:-12, 12:-12], expected[12:-12, 12:-12], atol=1e-5)
    np.testing.assert_allclose(bicubic(torch.full((5, 6), 0.3)).numpy(), 0.3, atol=1e-6)


@pytest.mark.parametrize(
    ("codec", "quality"), [(None, 0), ("libx264", 30), ("mpeg4", 8), ("mjpeg", 8)]
)
def test_degraded_clip_resembles_the_clean_one(photos, codec, quality):
    rng = np.random.default_rng(1)
    high = pan(read_photo(photos / "photo0.png"), 5, (128, 136), rng, 1.5)
    clean = torch.from_numpy(high).permute(0, 3, 1, 2).float() / 255
    low = d.degrade(
        clean, d.Degradation(blur=(1.2, 0.8), gaussian=3, codec=codec, quality=quality), rng
    )
    assert low.shape == (5, 32, 34, 3) and low.dtype == np.uint8
    error = np.abs(low / 255.0 - d.downscale(clean, "area").permute(0, 2, 3, 1).numpy()).mean()
    assert 0 < error < 0.06


def test_draws_cover_codecs_and_repeat_with_the_seed():
    draws = [d.draw(np.random.default_rng(i)) for i in range(60)]
    assert {x.codec for x in draws} == {None, "libx264", "mpeg4", "mjpeg"}
    assert draws == [d.draw(np.random.default_rng(i)) for i in range(60)]


def test_clips_are_a_function_of_seed_and_index(photos):
    clips = Clips(photos, length=10, frames=4, side=32, seed=1)
    for index in (7, 0, 3):
        low, high = clips[index]
        assert low.shape == (4, 32, 32, 3) and high.shape == (4, 128, 128, 3)
        again = Clips(photos, length=10, frames=4, side=32, seed=1)[index]
        assert torch.equal(low, again[0]) and torch.equal(high, again[1])
    other = Clips(photos, length=10, frames=4, side=32, seed=2)[0][1]
    assert not torch.equal(clips[0][1], other)


def test_clean_clips_pair_low_with_high(photos):
    clips = Clips(photos, length=4, frames=4, side=32, mix={"clean": 1.0})
    for index in range(4):
        low, high = clips[index]
        small = d.downscale(high.permute(0, 3, 1, 2).float(), "area").permute(0, 2, 3, 1)
        assert (small - low).abs().mean() < 10


def test_no_photographs_is_an_error(tmp_path, capsys):
    arguments = ["nano", "--data", str(tmp_path), "--checkpoint", str(tmp_path / "n.pt"), "--cpu"]
    assert cli.main(arguments) == 1
    assert "no photographs" in capsys.readouterr().err


def test_crops_are_turned_pieces_of_the_clips(photos):
    pool = Pool(3, Clips(photos, length=3, frames=4, side=8), torch.device("cpu"))
    for index in range(5):
        # The value of each pixel is its position.
        frame, row, column = torch.meshgrid(
            torch.arange(4), torch.arange(32), torch.arange(32), indexing="ij"
        )
        high = torch.stack([16 * index + frame, row, column], -1).to(torch.uint8)
        pool.put(index, high[:, ::4, ::4], high)
    low, high = pool.draw(200, 2, 4, generator_of(0, 0))
    assert low.shape == (200, 2, 4, 4, 3) and high.shape == (200, 2, 16, 16, 3)
    # The pool holds the last three of five clips.
    assert {int(value) // 16 for value in high[..., 0].unique()} == {2, 3, 4}
    seen = set()
    for small, large in zip(low.int(), high.int(), strict=True):
        exchanged = bool((large[0, 0, :, 1] != large[0, 0, 0, 1]).any())
        if exchanged:
            small, large = small.transpose(1, 2), large.transpose(1, 2)
        turned = []
        for axis, value in ((0, 0), (1, 1), (2, 2)):
            steps = large[..., value].diff(dim=axis)
            assert (steps == steps.flatten()[0]).all() and abs(int(steps.flatten()[0])) == 1
            turned.append(bool(steps.flatten()[0] < 0))
        seen.add((*turned, exchanged))
        # A low-resolution pixel lies on the first of its high-resolution ones in the clip.
        rows, columns = (slice(3, None, 4) if back else slice(0, None, 4) for back in turned[1:])
        assert torch.equal(small, large[:, rows, columns])
    assert len(seen) == 16


def test_a_batch_has_the_newest_clips(photos, monkeypatch):
    task = NanoTask(
        photos,
        NanoConfig(),
        NanoOptions(batch=64, pool=3, fresh=1.5, workers=0, frames=1),
        0,
        torch.device("cpu"),
        Nano(),
    )

    def clip(index):
        return torch.full((6, 64, 64, 3), index, dtype=torch.uint8), torch.full(
            (6, 256, 256, 3), index, dtype=torch.uint8
        )

    class Numbered:
        frames, side = 6, 64
        __getitem__ = staticmethod(clip)

        def load(self):
            pass

    monkeypatch.setattr(task, "clips", Numbered())
    shown = [{round(float(v) * 255) for v in low.unique()} for low, _ in task.batches(0, 5)]
    assert shown == [{0, 1, 2}, {1, 2, 3}, {3, 4, 5}, {4, 5, 6}, {6, 7, 8}]
    assert [
        {round(float(v) * 255) for v in low.unique()} for low, _ in task.batches(3, 5)
    ] == shown[3:]


def test_flat_crops_are_preferred(photos):
    task = NanoTask(photos, NanoConfig(), NanoOptions(batch=16), 0, torch.device("cpu"), Nano())
    flat, busy = (
        torch.full((3, 64, 64, 3), 90, dtype=torch.uint8),
        torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8),
    )
    pool = Pool(2, Clips(photos, length=2, frames=3), task.device)
    for index, clip in enumerate((flat, busy)):
        pool.put(index, clip, clip.repeat_interleave(4, 1).repeat_interleave(4, 2))
    stds = torch.cat(
        [task.batch_of(pool, iteration)[1].std((1, 2, 3, 4)) for iteration in range(32)]
    )
    # A quarter of the crops are the flattest of four, so 3/4 * 1/2 + 1/4 * 15/16 are flat.
    assert abs((stds == 0).float().mean() - 0.61) < 0.07


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--pool", 0),
        ("--fresh", 0.0),
        ("--batch", 0),
        ("--frames", 0),
        ("--frames", 33),
        ("--side", 0),
        ("--flicker", -1.0),
    ],
)
def test_impossible_sizes_are_refused(photos, tmp_path, capsys, option, value):
    arguments = ["nano", "--data", str(photos), "--checkpoint", str(tmp_path / "n.pt"), "--cpu"]
    assert cli.main([*arguments, option, str(value)]) == 1
    message = capsys.readouterr().err
    assert f"{option} is {value}" in message.replace("and ", "") or f"{option} {value}" in message


def test_a_finished_run_makes_no_clips(photos, monkeypatch):
    task = NanoTask(photos, NanoConfig(), NanoOptions(), 0, torch.device("cpu"), Nano())
    monkeypatch.setattr(task, "clips", None)
    assert list(task.batches(5, 5)) == list(task.batches(6, 5)) == []


def test_mixed_precision_leaves_the_hint_alone():
    low, std = torch.rand(1, 2, 3, 32, 32), torch.ones(48).numpy()
    expected = to_latents(bicubic(low), std)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(to_latents(bicubic(low), std), expected)


def test_rates():
    cycle, constant = Schedule(100, 1.0), Schedule(100, 1.0, constant=True)
    rates = [cycle.rate_at(i) for i in range(100)]
    assert rates[0] < 0.2 and max(rates) == pytest.approx(1.0, abs=0.01) and rates[-1] < 0.02
    assert {constant.rate_at(i) for i in range(100)} == {1.0}


def arguments(photos, checkpoint):
    files = ["--data", str(photos), "--checkpoint", str(checkpoint)]
    options = {"--iterations": 12, "--batch": 2, "--frames": 2, "--pool": 6}
    options |= {"--save-every": 4, "--sample-every": 8, "--threads": 1, "--seed": 3}
    words = [str(word) for option in options.items() for word in option]
    return ["nano", *files, *words, "--cpu"]


#: Runs the command and kills itself in iteration 6, two after a checkpoint.
KILLED = """
import os, signal, sys
from starsr.training import cli
from starsr.training.nano import NanoTask

loss, calls = NanoTask.loss, []

def deadly(*arguments):
    calls.append(arguments)
    if len(calls) > 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(*arguments)

NanoTask.loss = deadly
sys.exit(cli.main(sys.argv[1:]))
"""


def losses(checkpoint):
    with checkpoint.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        return {int(row["iteration"]): float(row["loss"]) for row in csv.DictReader(file)}


def test_a_killed_run_goes_on_as_if_unbroken(photos, tmp_path):
    whole, broken = tmp_path / "whole.pt", tmp_path / "broken.pt"
    assert cli.main(arguments(photos, whole)) == 0
    killed = [sys.executable, "-c", KILLED, *arguments(photos, broken)]
    assert subprocess.run(killed, check=False).returncode == -signal.SIGKILL
    assert torch.load(broken, weights_only=True)["iteration"] == 4
    assert cli.main(arguments(photos, broken)) == 0
    first, second = (torch.load(path, weights_only=True) for path in (whole, broken))
    assert first["iteration"] == second["iteration"] == 12
    assert losses(whole).keys() == losses(broken).keys() and len(losses(whole)) == 1
    assert losses(broken)[12] == pytest.approx(losses(whole)[12], abs=1e-4)
    for name, weight in first["average"].items():
        torch.testing.assert_close(second["average"][name], weight, atol=1e-4, rtol=0)
    assert not torch.equal(
        first["model"]["weights.out__weight"],
        torch.zeros_like(first["model"]["weights.out__weight"]),
    )
    samples = sorted(p.name for p in whole.with_suffix(".samples").iterdir())
    assert samples == ["000008.png", "000012.png"]
    assert Image.open(whole.with_suffix(".samples") / samples[0]).size == (3 * 256, 2 * 256)
    assert not list(tmp_path.glob("*.part"))


def test_a_checkpoint_of_another_network_is_refused(photos, tmp_path, capsys):
    path = tmp_path / "other.pt"
    torch.save(
        {"iteration": 1, "model": {"a": torch.zeros(1)}, "average": {}, "optimizer": {}}, path
    )
    other = path.read_bytes()
    for content in (other, other[: len(other) // 2], b"no checkpoint", b""):
        path.write_bytes(content)
        arguments = [
            "nano",
            "--data",
            str(photos),
            "--checkpoint",
            str(path),
            "--cpu",
            "--iterations",
            "1",
        ]
        assert cli.main(arguments) == 1
        assert "no checkpoint of this network" in capsys.readouterr().err


class Broken:
    """A task whose loss has no finite gradient in iterations 1 and 2."""

    def __init__(self):
        self.module = torch.nn.Conv2d(20, 32, 1)

    def batches(self, start, end):
        return iter(range(start, end))

    def loss(self, module, batch, generator):
        factor = {1: math.nan, 2: math.inf}.get(batch, 1.0)
        return factor * module(torch.ones(1, 20, 2, 2)).square().mean(), {}

    def sample(self, module):
        return None


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_gradient_that_is_not_finite_does_no_harm(tmp_path, optimizer):
    task = Broken()
    before = task.module.weight.detach().clone()
    run(
        task,
        Options(tmp_path / "a.pt", Schedule(4, 1e-2), optimizer=optimizer),
        Accelerator(cpu=True),
    )
    saved = torch.load(tmp_path / "a.pt", weights_only=True)
    assert all(
        torch.isfinite(w).all() for part in ("model", "average") for w in saved[part].values()
    )
    assert not torch.equal(task.module.weight, before)


def test_nano_starts_from_a_bundle_or_a_checkpoint(photos, nano_folder, tmp_path, capsys):
    def trained(name, *init):
        checkpoint = tmp_path / name
        arguments = [
            "nano",
            "--data",
            str(photos),
            "--checkpoint",
            str(checkpoint),
            "--cpu",
            "--iterations",
            "0",
            "--init",
        ]
        if cli.main([*arguments, *map(str, init)]):
            return capsys.readouterr().err
        return torch.load(checkpoint, weights_only=True)["average"]

    first = trained("a.pt", nano_folder)
    assert first["weights.out__weight"].abs().max() > 0
    second = trained("b.pt", tmp_path / "a.pt")
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    assert "nowhere" in trained("c.pt", tmp_path / "nowhere")
    (tmp_path / "words").write_text("no checkpoint")
    assert "words is no checkpoint of nano" in trained("c.pt", tmp_path / "words")
    assert "--liem" in trained("c.pt", nano_folder, "--liem", "none")
