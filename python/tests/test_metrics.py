# SPDX-License-Identifier: MPL-2.0

import numpy as np
import pytest
import torch
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from starsr.data.media import read_photo
from starsr.data.resize import bicubic
from starsr.evaluation import metrics as m


@pytest.fixture
def photo(photos):
    return read_photo(photos / "photo0.png")


def translated(photo, frames=4, size=(160, 192), velocity=(2, -3)):
    """Move a camera over a photograph by whole pixels a frame; returns `[F,H,W,3]`."""
    top, left = (abs(v) * (frames - 1) if v < 0 else 0 for v in velocity)
    corners = [(top + f * velocity[0], left + f * velocity[1]) for f in range(frames)]
    return np.stack([photo[y : y + size[0], x : x + size[1]] for y, x in corners])


def noisy(clip, sigma, seed=0):
    noise = np.random.default_rng(seed).normal(0, sigma, clip.shape)
    return np.clip(np.rint(clip + noise), 0, 255).astype(np.uint8)


def test_psnr_and_ssim_are_those_of_scikit_image(photo):
    target = translated(photo, 3)
    result = noisy(target, 12)
    a, b = result / 255, target / 255
    luma = [rgb2ycbcr(clip)[..., 0] for clip in (a, b)]
    expected = {
        "psnr": np.mean(
            [peak_signal_noise_ratio(y, x, data_range=1) for x, y in zip(a, b, strict=True)]
        ),
        "ssim": np.mean(
            [
                structural_similarity(x, y, channel_axis=2, data_range=1)
                for x, y in zip(a, b, strict=True)
            ]
        ),
        "psnr_y": np.mean(
            [peak_signal_noise_ratio(y, x, data_range=255) for x, y in zip(*luma, strict=True)]
        ),
        "ssim_y": np.mean(
            [structural_similarity(x, y, data_range=255) for x, y in zip(*luma, strict=True)]
        ),
    }
    figures = m.fidelity(result, target)
    assert {key: figures[key] for key in expected} == pytest.approx(expected, abs=1e-6)
    assert set(figures) <= set(m.FIGURES)
    assert m.psnr(target, target) == 100


def test_a_shift_by_a_pixel_is_forgiven(photo):
    target, shifted = photo[None, 10:150, 10:170], photo[None, 11:151, 9:169]
    figures = m.fidelity(shifted, target)
    assert (
        figures["psnr"] < 35
        and figures["psnr_shifted"] == 100
        and figures["ssim_shifted"] == pytest.approx(1)
    )
    assert m.fidelity(target, target)["psnr_y_shifted"] == 100


def test_sizes_that_differ_are_refused(photo):
    with pytest.raises(ValueError, match="give both one size"):
        m.fidelity(photo[None], photo[None, 1:])


@pytest.mark.parametrize("velocity", [(0, 0), (2, -3), (-7, 6)])
def test_no_warping_error_on_a_translated_clip(photo, velocity):
    clip = translated(photo, velocity=velocity)
    motions = m.motion(clip)
    errors = m.warping_errors(clip, motions)
    assert errors.shape == (3,) and errors.max() < 1e-6
    for step in motions:
        assert step.visible.mean() > 0.85
        assert np.abs(step.flow[:, step.visible] + np.reshape(velocity, (2, 1))).max() < 0.25


def test_warping_error_of_motion_by_parts_of_pixels_is_small(photo):
    frames = np.fft.fft2(photo.mean(2))
    y, x = (np.fft.fftfreq(n) for n in frames.shape)
    moved = [
        np.fft.ifft2(frames * np.exp(-2j * np.pi * t * (0.4 * y[:, None] + 0.7 * x))).real
        for t in range(3)
    ]
    clip = np.clip(np.rint(moved), 0, 255).astype(np.uint8)[:, 30:-30, 30:-30, None].repeat(3, -1)
    assert m.warping_errors(clip, m.motion(clip)).max() < 0.1


def test_warping_error_rises_with_flicker(photo):
    clip = translated(photo)
    motions = m.motion(clip)
    errors = [m.warping_errors(noisy(clip, sigma), motions).mean() for sigma in (0, 2, 5, 10)]
    assert errors == sorted(errors)
    # Both frames have noise of sigma levels; bilinear lookup at whole pixels does not smooth it.
    assert errors[2] == pytest.approx(1000 * 2 * (5 / 255) ** 2, rel=0.1)


def test_occluded_pixels_are_left_out(photo):
    clip = translated(photo, 2, velocity=(0, 0)).copy()
    for frame, left in enumerate((40, 52)):
        clip[frame, 40:100, left : left + 60] = photo[200:260, 200:260]
    (step,) = m.motion(clip)
    # Pixels that the moving square uncovers or covers, and pixels that stay.
    assert step.visible[50:90, 102:110].mean() < 0.5 and step.visible[120:].mean() > 0.95
    assert m.warping_errors(clip, [step])[0] < 0.1 * 1000 * np.mean(
        (clip[0] / 255 - clip[1] / 255) ** 2
    )


def test_motion_of_the_input_serves_results_of_four_times_its_size(photo):
    low = translated(photo, 3, (60, 72), (1, 2))
    high = low.repeat(4, 1).repeat(4, 2)
    motions = m.motion(low, 4)
    assert motions[0].flow.shape == (2, 240, 288)
    assert m.warping_errors(high, motions).max() < 0.02
    assert np.abs(motions[0].flow[:, 60:-60, 60:-60] + np.reshape((4, 8), (2, 1, 1))).max() < 0.01


def test_cuts_and_flat_clips_have_no_false_error(photo):
    cut = np.concatenate([translated(photo, 2), 255 - translated(photo[::-1], 2)])
    errors = m.warping_errors(cut, m.motion(cut))
    assert max(errors[0], errors[2]) < 1e-6
    assert not errors[1] < 1, errors
    black = np.zeros((3, 64, 64, 3), np.uint8)
    assert m.warping_errors(black, m.motion(black)).max() == 0
    assert (
        m.mean_or_none(np.array([np.nan, 2.0, 4.0])) == 3
        and m.mean_or_none(np.array([np.nan])) is None
    )


def test_seam_index():
    errors = np.ones(14)
    assert m.seam_index(errors, 6, 1) == 1
    # Windows 0-5, 5-10 and 10-14 share frames 5 and 10: pairs 4-5 and 5-6 touch a border.
    errors[[4, 5, 9, 10]] = 3
    assert m.seam_index(errors, 6, 1) == 3
    errors = np.ones(9)
    errors[4] = 2
    assert m.seam_index(errors, 5, 0) == 2
    assert m.seam_index(np.ones(4), 6, 1) is None
    assert m.seam_index(np.where(np.arange(9) == 4, 2, 1e-27), 5, 0) is None
    with pytest.raises(ValueError, match="cannot overlap by 6"):
        m.seam_index(errors, 6, 6)


@pytest.mark.parametrize("period", [4, 8])
@pytest.mark.parametrize("axis", [1, 2])
def test_grid_is_seen_in_rows_and_columns(photo, period, axis):
    low = torch.from_numpy(translated(photo, 2, (48, 64))).permute(0, 3, 1, 2).float()
    plain = bicubic(low).clamp(0, 255).round().byte().permute(0, 2, 3, 1).numpy()
    other = 12 - period

    def power(clip, period):
        value = m.grid_power(clip, plain, period)
        assert value is not None
        return value

    assert power(plain, period) <= 1
    shape = [1, 1, 1, 1]
    shape[axis] = plain.shape[axis]
    grid = 2 * np.cos(2 * np.pi * np.arange(shape[axis]) / period).reshape(shape)
    lattice = np.clip(np.rint(plain + grid), 0, 255).astype(np.uint8)
    assert power(lattice, period) > 5
    assert power(lattice, other) < 1.5
    assert 0.5 < power(noisy(plain, 3), period) < 2
    assert m.grid_power(plain[:, :40], plain[:, :40], period) is None


def test_sharpness_falls_with_blur(photo):
    clip = photo[None]
    blurred = np.mean([np.roll(clip, shift, 2) for shift in range(-3, 4)], 0).astype(np.uint8)
    assert m.sharpness(clip, clip) == 1
    assert m.sharpness(blurred, clip) < 0.9 and m.sharpness(noisy(clip, 20), clip) > 1.1
