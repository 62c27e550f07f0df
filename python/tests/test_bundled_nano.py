# SPDX-License-Identifier: MPL-2.0
"""The bundle that ships with the plugin."""

import hashlib

import numpy as np

from starsr.data import is_held_out, pan, read_photo, read_video
from starsr.evaluation.bundle import FIXED, measure
from starsr.nano.export import manifest
from starsr.reference import Bundle


def test_files_are_those_of_the_manifest(nano_folder):
    bundle = Bundle(nano_folder)
    for entry in bundle.manifest["graphs"].values():
        assert hashlib.sha256((nano_folder / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
    written = {key: value for key, value in bundle.manifest.items() if key != "graphs"}
    assert written == manifest(written["version"])
    assert sum(p.stat().st_size for p in nano_folder.iterdir()) < 16e6


def test_better_than_bicubic_on_held_out_clips(nano_folder, media):
    """The bar of the model card: 0.3 dB on average, nowhere 0.1 dB below, SSIM not lower."""
    bundle = Bundle(nano_folder, threads=2)
    rng = np.random.default_rng(11)
    names = ["kodak/18", "urban100/img_095", "sunhays80/img_078"]
    clips = []
    for name in names:
        path = media / "train" / f"{name}.webp"
        assert is_held_out(path)
        clips.append(pan(read_photo(path), 8, (256, 256), rng, shrink=1.4))
    clips.append(read_video(media / "hr" / "bikes.mp4", limit=8))
    rows = [measure(bundle, clip, kind, seed=5) for clip in clips for kind in FIXED.values()]
    gains = [row["psnr_bundle"] - row["psnr_bicubic"] for row in rows]
    print(f"gain over bicubic {np.mean(gains):+.3f} dB, least {min(gains):+.3f} dB")
    assert np.mean(gains) >= 0.3 and min(gains) >= -0.1
    assert np.mean([row["ssim_bundle"] - row["ssim_bicubic"] for row in rows]) >= 0
