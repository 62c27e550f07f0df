# SPDX-License-Identifier: MPL-2.0

import math

import numpy as np
import pytest
import torch

from starsr.data.clips import pan
from starsr.data.media import from_bytes, read_photo, to_bytes
from starsr.data.resize import bicubic
from starsr.degradation import codecs, kernels
from starsr.degradation.second_order import (
    PRESETS,
    Preset,
    Recipe,
    Stage,
    degrade,
    draw,
    draw_noise,
    draw_resize,
    drift,
    interlace,
    old_film,
)


def clip_of(photos, frames=6, size=(128, 160), seed=0):
    rng = np.random.default_rng(seed)
    return from_bytes(
        np.ascontiguousarray(pan(read_photo(photos / "photo0.png"), frames, size, rng, 1.5))
    )


def test_kernels_are_normalised_and_of_their_width():
    for kind, beta in [("gaussian", 1.0), ("generalized", 1.0)]:
        kernel = kernels.gaussian(21, (1.5, 1.5), 0.0, kind, beta)
        y, x = kernels.coordinates(21)
        assert abs(float(kernel.sum()) - 1) < 1e-6
        assert abs(float((kernel * x**2).sum()) ** 0.5 - 1.5) < 0.01
    turned = kernels.gaussian(21, (3.0, 0.5), math.pi / 2)
    y, x = kernels.coordinates(21)
    assert (turned * y**2).sum() > 9 * (turned * x**2).sum()


def test_sinc_passes_low_and_stops_high_frequencies():
    response = torch.fft.fft2(kernels.sinc(21, math.pi / 2), (64, 64)).abs()
    assert response[0, :12].min() > 0.8 and response[0, 24:32].max() < 0.2


def test_kernel_shapes_are_drawn_in_their_shares():
    rng = np.random.default_rng(0)
    drawn = [kernels.draw(rng, 9, (0.2, 3.0), 0.1) for _ in range(3000)]
    # Only low-passes have negative taps.
    ringing = np.mean([bool((k < -1e-6).any()) for k in drawn])
    assert 0.08 < ringing < 0.12
    assert math.isclose(sum(kernels.SHAPES.values()), 1.0)


@pytest.mark.parametrize("codec", PRESETS["heavy"].video)
def test_video_codecs_spend_what_they_are_given(photos, codec):
    # Grey, since half the chroma is lost at every bit rate.
    clip = to_bytes(clip_of(photos, 8, (96, 96)).mean(1, keepdim=True).expand(-1, 3, -1, -1))
    errors = [
        np.abs(codecs.transcode(clip, codec, bits=bits).astype(float) - clip).mean()
        for bits in (0.05, 1.5)
    ]
    assert errors[1] < 0.9 * errors[0]
    small = codecs.transcode(clip[:2, :6, :7], codec, bits=1.0)
    assert small.shape == (2, 6, 7, 3)


def test_jpeg_quality():
    clip = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    errors = np.abs(codecs.jpeg(clip, np.array([20, 60, 95])).astype(float) - clip).mean((1, 2, 3))
    assert errors[0] > errors[1] > errors[2]


def test_resize_is_drawn_in_its_shares_and_ranges():
    rng, stage, factors = np.random.default_rng(0), PRESETS["heavy"].stages[0], []
    for _ in range(2000):
        recipe = Recipe()
        draw_resize(rng, recipe, stage, (64, 64))
        factors.append(float(recipe.steps[0][0].split()[1]))
    factors = np.array(factors)
    assert 0.17 < np.mean(factors > 1.0) + 0.0 < 0.23
    assert 0.08 < np.mean(factors == 1.0) < 0.12
    assert factors.min() >= 0.15 and factors.max() <= 1.5


def test_noise_is_drawn_in_its_shares_and_measures_what_it_says():
    rng, clip, kinds = (
        np.random.default_rng(0),
        torch.full((4, 3, 64, 64), 0.5),
        {"gaussian": 0, "poisson": 0},
    )
    gray = 0
    for _ in range(300):
        recipe = Recipe()
        draw_noise(rng, recipe, 4, Stage())
        ((name, step),) = recipe.steps
        kind, value = name.split()
        kinds[kind] += 1
        error = step(clip) - clip
        gray += bool((error[:, :1] == error).all())
        expected = float(value) / 255 if kind == "gaussian" else float(value) * math.sqrt(0.5 / 255)
        assert 0.75 * expected - 1e-3 < float(error.std()) < 1.25 * expected + 1e-3
    assert 120 < kinds["gaussian"] < 180
    assert 90 < gray < 150


def test_noise_is_new_in_each_frame_and_its_strength_drifts():
    rng = np.random.default_rng(3)
    recipe = Recipe()
    draw_noise(rng, recipe, 12, Stage(poisson=(1.0, 1.0), gaussian=(20.0, 20.0)))
    noisy = recipe(torch.full((12, 3, 64, 64), 0.5)) - 0.5
    assert abs(float((noisy[0] * noisy[1]).mean())) < 0.1 * float(noisy[0].square().mean())
    stds = noisy.flatten(1).std(1)
    assert (stds.diff().abs() < 0.1 * stds[1:]).all()
    factors = drift(rng, 200, 0.2)
    assert np.abs(np.diff(factors)).max() < 0.03 and np.abs(factors - 1).max() <= 0.2


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(photos, preset):
    clip = clip_of(photos)
    for seed in range(4):
        low = degrade(clip, PRESETS[preset], np.random.default_rng(seed))
        assert low.shape == (6, 32, 40, 3) and low.dtype == np.uint8
        assert np.array_equal(low, degrade(clip, PRESETS[preset], np.random.default_rng(seed)))
    assert degrade(clip[:1], PRESETS[preset], np.random.default_rng(0)).shape == (1, 32, 40, 3)


def test_heavy_is_worse_than_light(photos):
    clip = clip_of(photos, 4)

    def quality(preset):
        results = []
        for seed in range(12):
            plain = bicubic(
                from_bytes(degrade(clip, PRESETS[preset], np.random.default_rng(seed)))
            ).clamp(0, 1)
            results.append(-10 * math.log10(float((plain - clip).square().mean())))
        return np.mean(results)

    assert quality("light") > quality("heavy") + 0.5


def test_clips_are_coherent_and_official_frames_are_not(photos):
    still = clip_of(photos, 1).expand(6, -1, -1, -1).contiguous()
    stage = Stage(noise_share=0.0, video_share=0.0)

    def flicker(per_frame):
        preset = Preset((stage,), per_frame=per_frame)
        lows = [
            from_bytes(degrade(still, preset, np.random.default_rng(seed))) for seed in range(6)
        ]
        return np.mean([float(low.diff(dim=0).abs().mean()) for low in lows])

    assert flicker(True) > 3 * flicker(False)


def test_recipe_order_and_names():
    names = [
        name for name, _ in draw(np.random.default_rng(1), PRESETS["heavy"], 4, (128, 128)).steps
    ]
    kinds = [name.split()[0] for name in names]
    assert kinds.index("resize") > kinds.index("blur")
    assert kinds[-1] in codecs.VIDEO
    assert kinds.count("resize") == 3 and kinds.count("jpeg") == 2


def test_interlaced_and_old_film(photos):
    clip = clip_of(photos)
    woven = interlace(clip)
    assert torch.equal(woven[:, :, ::2], clip[:, :, ::2]) and torch.equal(
        woven[0, :, 1::2], clip[1, :, 1::2]
    )
    film = old_film(clip, 0)
    assert film.shape == clip.shape and film.min() >= 0 and film.max() <= 1
    assert (film - clip).abs().mean() > 0.005
