# SPDX-License-Identifier: MPL-2.0
"""Makes degraded copies of clean clips: paired folders gt, lq and text, for training and as test sets."""

import argparse
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from starsr.data.clips import pan
from starsr.data.media import PHOTO_SUFFIXES, SCALE, VIDEO_SUFFIXES, find, from_bytes, read_clip, read_photo
from starsr.data.pairs import write_pair
from starsr.degradation.second_order import PRESETS, degrade


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="starsr-degrade", description=__doc__)
    add = result.add_argument
    add("input", type=Path, help="folder with clean video, and photographs, which are panned")
    add("output", type=Path, help="folder of the pairs; those that are there already are left alone")
    add(
        "--preset",
        choices=PRESETS,
        default="heavy",
        help="how much (%(default)s); official: each frame anew, as in the released code",
    )
    add("--frames", type=int, default=32, help="frames of a clip (%(default)s)")
    add("--width", type=int, default=1280, help="most pixels of a clean clip's width (%(default)s)")
    add("--height", type=int, default=720, help="most pixels of its height (%(default)s)")
    add("--copies", type=int, default=1, help="different degradations of each clip (%(default)s)")
    add("--interlace", type=float, default=0.0, help="share of clips that are interlaced (%(default)s)")
    add("--old-film", type=float, default=0.0, help="share of clips that look like old film (%(default)s)")
    add("--seed", type=int, default=0, help="same seed, same clips (%(default)s)")
    return result


def clean_clip(path: Path, options: argparse.Namespace, rng: np.random.Generator) -> np.ndarray:
    """`[F,H,W,3]` uint8 of a video or a photograph, within the sizes asked for, sides multiples of 8."""
    if path.suffix.lower() in PHOTO_SUFFIXES:
        photo = read_photo(path)
        size = tuple(int(min(most, 0.8 * n)) // 8 * 8 for most, n in zip((options.height, options.width), photo.shape[:2]))
        return pan(photo, options.frames, size, rng, shrink=1.0)
    video = read_clip(path, limit=options.frames)
    height, width = (min(most, n) // 8 * 8 for most, n in zip((options.height, options.width), video.shape[1:3]))
    top, left = ((n - m) // 2 for n, m in zip(video.shape[1:3], (height, width)))
    return np.ascontiguousarray(video[:, top : top + height, left : left + width])


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and gives its exit status."""
    options = parser().parse_args(arguments)
    files = find(options.input, PHOTO_SUFFIXES + VIDEO_SUFFIXES)
    if not files:
        print(f"starsr-degrade: {options.input} has no video and no photographs: name another folder", file=sys.stderr)
        return 1
    preset = replace(PRESETS[options.preset], interlace_share=options.interlace, film_share=options.old_film)
    for path in tqdm(files, unit="clip", disable=None):
        for copy in range(options.copies):
            # By content of the name, so that a clip comes out the same whatever else is in the folder.
            name = "-".join(path.relative_to(options.input).with_suffix("").parts) + (f"-{copy}" if options.copies > 1 else "")
            if (options.output / "text" / f"{name}.txt").is_file():
                continue
            rng = np.random.default_rng((options.seed, zlib.crc32(name.encode())))
            try:
                high = clean_clip(path, options, rng)
            except (OSError, ValueError) as e:
                print(f"starsr-degrade: {path} cannot be read ({e}): remove it from the folder", file=sys.stderr)
                return 1
            if min(high.shape[1:3]) < 8 * SCALE:
                print(f"starsr-degrade: {path} is smaller than {8 * SCALE} pixels: remove it from the folder", file=sys.stderr)
                return 1
            low = degrade(from_bytes(high), preset, rng)
            words = path.with_suffix(".txt")
            write_pair(options.output, name, high, low, words.read_text(encoding="utf-8").strip() if words.is_file() else "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
