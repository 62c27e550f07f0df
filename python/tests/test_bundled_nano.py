# SPDX-License-Identifier: MPL-2.0
"""The bundle that ships with the plugin."""

import hashlib

import numpy as np

from starsr.evaluation import metrics, sources, upscalers
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
    """The bars of the model card, on some of its clips."""
    nano = upscalers.bundle("nano", nano_folder)
    gains, similar = {}, []
    for source in sources.degraded(["clean", "light", "heavy"], media / "train", [media / "hr" / "bikes.mp4"], 8, 6, seed=5):
        clip = source.load()
        result, plain = nano(clip.low), upscalers.plain(clip.low)
        gains.setdefault(source.group, []).append(metrics.psnr(result, clip.truth) - metrics.psnr(plain, clip.truth))
        similar.append(metrics.ssim(result, clip.truth) - metrics.ssim(plain, clip.truth))
    print({group: f"{np.mean(values):+.3f} dB, least {min(values):+.3f} dB" for group, values in gains.items()})
    assert np.mean(gains["light"] + gains["heavy"]) >= 0.3
    assert min(gains["clean"] + gains["light"]) >= -0.1
    assert np.mean(similar) >= 0.01
