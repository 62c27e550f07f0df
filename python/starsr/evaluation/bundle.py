# SPDX-License-Identifier: MPL-2.0
"""Measures a bundle against bicubic on held-out clips that are degraded here: PSNR, SSIM and the 4-pixel grid."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from starsr.data import PHOTO_SUFFIXES, find, is_held_out, pan, read_photo, read_video
from starsr.degradation.first_order import Degradation, degrade, draw
from starsr.evaluation.metrics import psnr, ssim
from starsr.reference import Bundle
from starsr.resize import bicubic

#: Fixed degradations from mild to harsh, beside the random ones of training.
FIXED = {
    "mild": Degradation(blur=(0.8, 0.8), codec="libx264", quality=23),
    "medium": Degradation(blur=(1.6, 1.6), gaussian=4, codec="libx264", quality=28),
    "harsh": Degradation(blur=(2.4, 2.4), gaussian=10, codec="libx264", quality=33),
    "noise": Degradation(blur=(1.2, 1.2), gaussian=12, codec=None),
}


def grid_power(frame: np.ndarray, period: int = 4) -> float:
    """Power of the horizontal spectrum of `[H,W,3]` at `1/period`, relative to its neighbourhood; 1 is no grid."""
    luma = frame.mean(2)
    luma = luma[:, : luma.shape[1] // 32 * 32]
    power = (np.abs(np.fft.rfft(luma - luma.mean(1, keepdims=True))) ** 2).mean(0)
    peak = luma.shape[1] // period
    return float(power[peak] / np.median(np.r_[power[peak - 6 : peak - 1], power[peak + 2 : peak + 7]]))


def clips(media: Path, held_out: list[Path], frames: int) -> Iterator[tuple[str, np.ndarray]]:
    """Names and clean clips `[F,H,W,3]` uint8: held-out photographs panned, and pieces of held-out video."""
    rng = np.random.default_rng(7)
    for path in find(media, PHOTO_SUFFIXES):
        if is_held_out(path):
            photo = read_photo(path)
            yield f"{path.parent.name}/{path.stem}", pan(photo, frames, (256, 384), rng, shrink=1.4)
    for path in held_out:
        video = read_video(path)
        for start in range(0, len(video) - frames, max(frames, len(video) // 6)):
            yield f"{path.stem}@{start}", video[start : start + frames]


def measure(bundle: Bundle, high: np.ndarray, degradation: Degradation, seed: int) -> dict[str, float]:
    """Figures of one clip for the bundle and for bicubic."""
    rng = np.random.default_rng(seed)
    low = degrade(torch.from_numpy(high.copy()).permute(0, 3, 1, 2).float() / 255, degradation, rng)
    plain = bicubic(torch.from_numpy(low.copy()).permute(0, 3, 1, 2).float() / 255).clamp(0, 1).numpy().transpose(0, 2, 3, 1)
    better = bundle.upscale(low, rng)
    target = high / 255.0
    rounded = {"bicubic": np.rint(plain * 255) / 255, "bundle": np.rint(better * 255) / 255}
    figures = {}
    for name, result in rounded.items():
        figures[f"psnr_{name}"], figures[f"ssim_{name}"] = psnr(result, target), ssim(result, target)
        figures[f"grid_{name}"] = grid_power(result[len(result) // 2])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m starsr.evaluation.bundle", description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True, help="folder of the bundle")
    parser.add_argument("--media", type=Path, required=True, help="folder with the photographs; held-out ones are used")
    parser.add_argument("--video", type=Path, nargs="*", default=[], help="clean videos that were not trained on")
    parser.add_argument("--frames", type=int, default=8, help="frames of a clip")
    parser.add_argument("--every", type=int, default=1, help="use each n-th clip only")
    options = parser.parse_args()
    bundle = Bundle(options.bundle)
    rows = []
    for index, (name, high) in enumerate(clips(options.media, options.video, options.frames)):
        if index % options.every:
            continue
        draws = {**FIXED, "drawn": draw(np.random.default_rng(index))}
        for kind, degradation in draws.items():
            figures = measure(bundle, high, degradation, seed=index)
            gain = figures["psnr_bundle"] - figures["psnr_bicubic"]
            rows.append({**figures, "kind": kind, "gain": gain})
            print(
                f"{name:28} {kind:7} bicubic {figures['psnr_bicubic']:6.2f} dB  gain {gain:+5.2f} dB  "
                f"ssim {figures['ssim_bicubic']:.4f} {figures['ssim_bundle'] - figures['ssim_bicubic']:+.4f}  "
                f"grid {figures['grid_bicubic']:.2f} {figures['grid_bundle']:.2f}",
                flush=True,
            )
    for kind in [*FIXED, "drawn", None]:
        chosen = [row for row in rows if kind in (None, row["kind"])]
        mean = {key: np.mean([row[key] for row in chosen]) for key in chosen[0] if key != "kind"}
        print(
            f"{kind or 'all':8} {len(chosen)} clips: gain {mean['gain']:+.3f} dB, least "
            f"{min(row['gain'] for row in chosen):+.3f} dB, ssim {mean['ssim_bicubic']:.4f} -> {mean['ssim_bundle']:.4f}, "
            f"grid {mean['grid_bicubic']:.2f} -> {mean['grid_bundle']:.2f}"
        )


if __name__ == "__main__":
    main()
