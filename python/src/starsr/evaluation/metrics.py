# SPDX-License-Identifier: MPL-2.0
"""Figures of upscaled clips.

Clips are `[F,H,W,3]` RGB, uint8 or floats in [0,1]; luma is `[F,H,W]` in [0,1].
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from skimage.color import rgb2gray, rgb2ycbcr
from skimage.metrics import structural_similarity
from skimage.registration import optical_flow_ilk, phase_cross_correlation

#: Side of the blocks that are searched for a grid: periods 4 and 8 are whole bins of its spectrum.
BLOCK = 64
#: E*_warp, times 1000, of a clip without change but for rounding: one level of a pixel gives more.
STILL = 1e-9


@dataclass(frozen=True)
class Figure:
    """The title of a figure, its best value, the digits to print, and its meaning.

    `best` is `max`, `min`, `one` (nearest to 1) or `limit` (1 or less, all equally good).
    """

    title: str
    best: str
    digits: int
    meaning: str


FIGURES = {
    "psnr": Figure("PSNR", "max", 2, "Peak signal-to-noise ratio of RGB in dB, mean over frames."),
    "gain": Figure("gain", "max", 2, "PSNR above that of bicubic, dB."),
    "ssim": Figure(
        "SSIM",
        "max",
        4,
        "Structural similarity of RGB, mean over channels and frames (7x7 windows).",
    ),
    "psnr_y": Figure(
        "PSNR-Y", "max", 2, "PSNR of BT.601 luma in its range of 16 to 235, as in papers; dB."
    ),
    "ssim_y": Figure("SSIM-Y", "max", 4, "SSIM of the same luma."),
    "psnr_shifted": Figure(
        "PSNR ±1", "max", 2, "PSNR of RGB at the best of nine shifts by up to one pixel; dB."
    ),
    "ssim_shifted": Figure("SSIM ±1", "max", 4, "SSIM of RGB at that shift."),
    "psnr_y_shifted": Figure("PSNR-Y ±1", "max", 2, "PSNR of luma at that shift; dB."),
    "ssim_y_shifted": Figure("SSIM-Y ±1", "max", 4, "SSIM of luma at that shift."),
    "warp": Figure(
        "E*warp",
        "min",
        3,
        "Warping error x1e-3: change along the motion of the ground truth, or of the input if "
        "there is no ground truth.",
    ),
    "seam": Figure(
        "seam", "limit", 2, "E*warp at the borders of windows over that elsewhere; 1 is no seam."
    ),
    "grid4": Figure(
        "grid 4",
        "limit",
        2,
        "Spectral peak at a period of 4 pixels in flat areas over bicubic's (at least 1).",
    ),
    "grid8": Figure("grid 8", "limit", 2, "The same at a period of 8 pixels."),
    "sharpness": Figure(
        "sharpness",
        "one",
        3,
        "Mean gradient of luma over that of the ground truth; below 1 is blur.",
    ),
}


def as_float(clip: np.ndarray) -> np.ndarray:
    """Convert 8-bit levels to float64 in [0,1], and other floats to 64 bits."""
    floats: np.ndarray = clip / 255.0 if clip.dtype == np.uint8 else clip.astype(np.float64)
    return floats


def luma(clip: np.ndarray) -> np.ndarray:
    """Return BT.601 luma `[...]` of RGB `[...,3]`, 16/255 to 235/255, as MATLAB defines it."""
    result: np.ndarray = rgb2ycbcr(as_float(clip))[..., 0] / 255
    return result


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of arrays in [0,1] in dB, 100 if they are equal."""
    error = np.mean((as_float(a) - as_float(b)) ** 2)
    return float(-10 * np.log10(max(error, 1e-10)))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean structural similarity over the frames of two clips, or of their luma."""
    axis = 2 if a.ndim == 4 else None
    pairs = [(as_float(x), as_float(y)) for x, y in zip(a, b, strict=True)]
    values = [structural_similarity(x, y, channel_axis=axis, data_range=1.0) for x, y in pairs]
    return float(np.mean(values))


def psnr_frames(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Return the PSNR of each frame."""
    return [psnr(x, y) for x, y in zip(a, b, strict=True)]


def best_shift(result: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shift the result by up to one pixel in each direction to where the squared error is least.

    Scalers disagree about the position of pixels. Returns result and target without a border of one
    pixel.
    """
    height, width = target.shape[1:3]
    inner = target[:, 1:-1, 1:-1]
    views = [result[:, y : height - 2 + y, x : width - 2 + x] for y in range(3) for x in range(3)]
    return max(views, key=lambda view: psnr(view, inner)), inner


def fidelity(result: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Return PSNR and SSIM of RGB and luma, without a shift and at the best one."""
    if result.shape != target.shape:
        raise ValueError(
            f"results of shape {result.shape} cannot be compared with {target.shape}; give both "
            "one size"
        )
    figures = {}
    for suffix, (a, b) in (("", (result, target)), ("_shifted", best_shift(result, target))):
        a_luma, b_luma = luma(a), luma(b)
        figures[f"psnr{suffix}"] = float(np.mean(psnr_frames(a, b)))
        figures[f"ssim{suffix}"] = ssim(a, b)
        figures[f"psnr_y{suffix}"] = float(np.mean(psnr_frames(a_luma, b_luma)))
        figures[f"ssim_y{suffix}"] = ssim(a_luma, b_luma)
    return figures


def sharpness(result: np.ndarray, target: np.ndarray) -> float:
    """Return the mean magnitude of the luma's gradient over that of the target.

    The gradient is that of central differences; noise counts as sharpness.
    """
    a, b = (
        np.mean([np.hypot(*np.gradient(frame)).mean() for frame in luma(clip)])
        for clip in (result, target)
    )
    return float(a / max(b, 1e-9))


@dataclass(frozen=True)
class Motion:
    """Motion from a frame to the next.

    `flow` `[2,H,W]` is in pixels down and right, so that `frame(x) = next(x + flow(x))`. `visible`
    `[H,W]` marks the pixels that the next frame shows too.
    """

    flow: np.ndarray
    visible: np.ndarray


def warp(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Look up an image `[H,W,C]` bilinearly at each pixel plus its flow `[2,H,W]`.

    Pixels outside repeat the edge.
    """
    height, width = flow.shape[1:]
    y, x = np.arange(height)[:, None] + flow[0], np.arange(width) + flow[1]
    places = np.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], -1)
    grid = torch.from_numpy(places[None].astype(np.float64))
    planes = torch.from_numpy(as_float(image)).permute(2, 0, 1)[None]
    warped = F.grid_sample(planes, grid, padding_mode="border", align_corners=True)
    return warped[0].permute(1, 2, 0).numpy()


def inside(vectors: np.ndarray) -> np.ndarray:
    """Return the pixels `[H,W]` whose flow `[2,H,W]` stays in the picture."""
    height, width = vectors.shape[1:]
    y, x = np.arange(height)[:, None] + vectors[0], np.arange(width) + vectors[1]
    stays: np.ndarray = (y >= 0) & (y <= height - 1) & (x >= 0) & (x <= width - 1)
    return stays


def around(values: np.ndarray) -> np.ndarray:
    """Return the mean of `[H,W]` over the 9x9 pixels around each."""
    return F.avg_pool2d(torch.from_numpy(values)[None], 9, 1, 4)[0].numpy()


def flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the flow `[2,H,W]` from one grey picture `[H,W]` to another.

    It is that of scikit-image's iterative Lucas-Kanade. Where a translation of the whole picture by
    whole pixels explains the 9x9 pixels around no worse, it is that translation, so that pans are
    followed exactly. Black has no motion.
    """
    if not (first.any() and second.any()):
        return np.zeros((2, *first.shape))
    local = np.asarray(optical_flow_ilk(first, second), np.float64)
    pan = np.empty_like(local)
    pan[:] = -np.reshape(phase_cross_correlation(first, second)[0], (2, 1, 1))
    by_local, by_pan = (np.square(first - warp(second[..., None], f)[..., 0]) for f in (local, pan))
    counted = inside(pan).astype(np.float64)
    no_worse = (around((by_pan - by_local) * counted) <= 1e-12) & (around(counted) > 0)
    return np.where(no_worse, pan, local)


def visible(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """Return the pixels `[H,W]` that are neither occluded nor followed wrongly.

    Their flow stays in the picture, and `backward` leads it back to within 1/4 pixel.
    """
    back = warp(backward.transpose(1, 2, 0), forward).transpose(2, 0, 1)
    seen: np.ndarray = inside(forward) & (np.square(forward + back).sum(0) < 0.25**2)
    return seen


def motion(clip: np.ndarray, scale: int = 1) -> list[Motion]:
    """Return the motion between the frames of a clip, for results of `scale` times its size."""
    grey = [rgb2gray(as_float(frame)) for frame in clip]
    motions = []
    for first, second in pairwise(grey):
        forward = flow(first, second)
        seen = visible(forward, flow(second, first))
        if scale > 1:
            size = (scale * first.shape[0], scale * first.shape[1])
            enlarged = torch.from_numpy(forward)[None] * scale
            forward = F.interpolate(enlarged, size, mode="bilinear")[0].numpy()
            seen = seen.repeat(scale, 0).repeat(scale, 1)
        motions.append(Motion(forward, seen))
    return motions


def warping_errors(clip: np.ndarray, motions: list[Motion]) -> np.ndarray:
    """Return E*_warp of each pair of neighbouring frames, `[F-1]`.

    It is the mean over visible pixels and channels of `(frame - warp(next, flow))^2` for values in
    [0,1], times 1000, after Lai et al., "Learning Blind Video Temporal Consistency" (ECCV 2018).
    The figure of a clip is the mean over pairs. The flow is that of the ground truth, or of the
    input if there is no ground truth, so that it is the same for all results. A pair of which less
    than a tenth is visible, such as a cut, gives NaN.
    """
    errors = []
    for first, second, step in zip(clip[:-1], clip[1:], motions, strict=True):
        difference = as_float(first) - warp(second, step.flow)
        enough = step.visible.mean() >= 0.1
        errors.append(1000 * np.mean(difference[step.visible] ** 2) if enough else np.nan)
    return np.array(errors)


def mean_or_none(values: np.ndarray) -> float | None:
    """Return the mean of the finite values, None if there are none."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def seam_index(errors: np.ndarray, length: int, overlap: int) -> float | None:
    """Return the mean of E*_warp `[F-1]` at the borders of windows over the mean elsewhere.

    A border is where a window of `length` frames hands over to the next, through all frames of
    their `overlap`. Returns None if the clip has no border, nothing but borders, or no change.
    """
    if not 0 <= overlap < length:
        raise ValueError(
            f"windows of {length} frames cannot overlap by {overlap}; choose an overlap from 0 to "
            f"{length - 1}"
        )
    border = np.zeros(len(errors), bool)
    for start in range(length - overlap, len(errors) + 1, length - overlap):
        border[start - 1 : start + overlap] = True
    at, elsewhere = mean_or_none(errors[border]), mean_or_none(errors[~border])
    if at is None or elsewhere is None or elsewhere <= STILL:
        return None
    return at / elsewhere


def blocks(pictures: np.ndarray) -> np.ndarray:
    """Cut `[F,H,W]` into blocks `[n,64,64]` that overlap by half."""
    views = np.lib.stride_tricks.sliding_window_view(pictures, (BLOCK, BLOCK), axis=(1, 2))
    return views[:, :: BLOCK // 2, :: BLOCK // 2].reshape(-1, BLOCK, BLOCK)


def spectral_peak(rows: np.ndarray, period: int) -> float:
    """Return the power of `[...,64]` at `1/period` over that of a smooth spectrum.

    The latter is the geometric mean of the power at neighbouring frequencies.
    """
    windowed = (rows - rows.mean(-1, keepdims=True)) * np.hanning(BLOCK + 1)[:-1]
    power = (np.abs(np.fft.rfft(windowed)) ** 2).reshape(-1, BLOCK // 2 + 1).mean(0) + 1e-12
    at = BLOCK // period
    beside = np.r_[power[at - 5 : at - 2], power[at + 3 : at + 6]]
    return float(power[at] / np.exp(np.log(beside).mean()))


def grid_power(result: np.ndarray, plain: np.ndarray, period: int) -> float | None:
    """Return the spectral peak at `1/period` of a clip's luma over that of the bicubic upscale.

    It is measured in the flattest quarter of the 64x64 blocks of the bicubic upscale `plain`, and
    in the worse of rows and columns. A value of up to 1 means no grid; None is for pictures below
    64 pixels. Where bicubic has a dip instead of a peak, the divisor is 1: filling a dip makes no
    grid.
    """
    if min(plain.shape[1:3]) < BLOCK:
        return None
    chosen = np.linspace(0, len(plain) - 1, min(len(plain), 4)).astype(int)
    ours, theirs = (blocks(luma(clip[chosen])) for clip in (result, plain))
    std = theirs.std((1, 2))
    flat = std <= np.quantile(std, 0.25)
    ours, theirs = ours[flat], theirs[flat]
    pairs = [(ours, theirs), (ours.transpose(0, 2, 1), theirs.transpose(0, 2, 1))]
    return max(spectral_peak(a, period) / max(spectral_peak(b, period), 1.0) for a, b in pairs)
