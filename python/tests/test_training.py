# SPDX-License-Identifier: MPL-2.0

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from starsr.degradation import first_order as d
from starsr.data import Clips, pan, read_photo
from starsr.losses import df_loss, df_weight, grid_loss, low_pass, v_loss
from starsr.resize import bicubic


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
    assert grid_loss(clean + pattern, clean) > 20 * grid_loss(clean + 0.02 * torch.randn(clean.shape), clean)
    assert grid_loss(clean + 0.3, clean) < 1e-10


def test_bicubic_agrees_with_pillow_inside():
    image = np.random.default_rng(0).random((24, 20), np.float32)
    expected = np.asarray(Image.fromarray(image).resize((80, 96), Image.Resampling.BICUBIC))
    actual = bicubic(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(actual[12:-12, 12:-12], expected[12:-12, 12:-12], atol=1e-5)
    np.testing.assert_allclose(bicubic(torch.full((5, 6), 0.3)).numpy(), 0.3, atol=1e-6)


@pytest.mark.parametrize("codec,quality", [(None, 0), ("libx264", 30), ("mpeg4", 8), ("mjpeg", 8)])
def test_degraded_clip_resembles_the_clean_one(photos, codec, quality):
    rng = np.random.default_rng(1)
    high = pan(read_photo(photos / "photo0.png"), 5, (128, 136), rng, 1.5)
    clean = torch.from_numpy(high).permute(0, 3, 1, 2).float() / 255
    low = d.degrade(clean, d.Degradation(blur=(1.2, 0.8), gaussian=3, codec=codec, quality=quality), rng)
    assert low.shape == (5, 32, 34, 3) and low.dtype == np.uint8
    error = np.abs(low / 255.0 - d.downscale(clean, "area").permute(0, 2, 3, 1).numpy()).mean()
    assert 0 < error < 0.06


def test_draws_cover_codecs_and_repeat_with_the_seed():
    draws = [d.draw(np.random.default_rng(i)) for i in range(60)]
    assert {x.codec for x in draws} == {None, "libx264", "mpeg4", "mjpeg"}
    assert draws == [d.draw(np.random.default_rng(i)) for i in range(60)]


def test_clips_pair_low_with_high(photos):
    stream = iter(Clips(photos, frames=4, side=32))
    for _ in range(3):
        low, high = next(stream)
        assert low.shape == (4, 32, 32, 3) and high.shape == (4, 128, 128, 3)
        small = d.downscale(high.permute(0, 3, 1, 2).float(), "area").permute(0, 2, 3, 1)
        assert (small - low).abs().mean() < 30


def test_no_photographs_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no photographs"):
        Clips(tmp_path)


def test_training_learns_saves_and_resumes(photos, tmp_path):
    checkpoint = tmp_path / "nano.pt"

    def train(minutes):
        command = [sys.executable, "-m", "starsr.train", "--media", photos, "--checkpoint", checkpoint, "--batch", "2"]
        command += ["--frames", "2", "--minutes", minutes, "--pool", "8", "--device", "cpu"]
        subprocess.run([str(c) for c in command], check=True, cwd=photos, env=environment())
        return torch.load(checkpoint, weights_only=True)

    first = train(0.02)
    second = train(first["elapsed"] / 60 + 0.02)
    assert second["iteration"] > first["iteration"] > 0 and second["elapsed"] > first["elapsed"]
    assert not torch.equal(first["average"]["weights.out__weight"], second["average"]["weights.out__weight"])
    assert torch.equal(first["model"]["deviation"], second["model"]["deviation"])
    assert not list(tmp_path.glob("*.part"))


def environment():
    import os
    from pathlib import Path

    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
