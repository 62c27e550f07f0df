# SPDX-License-Identifier: MPL-2.0
"""The bundle that ships with the plugin."""

import hashlib

import numpy as np

from starsr.bundle.reader import Bundle
from starsr.evaluation import metrics, sources, upscalers
from starsr.export.nano import manifest


def test_files_are_those_of_the_manifest(nano_folder):
    bundle = Bundle(nano_folder)
    for entry in bundle.manifest["graphs"].values():
        assert (
            hashlib.sha256((nano_folder / entry["file"]).read_bytes()).hexdigest()
            == entry["sha256"]
        )
    written = {key: value for key, value in bundle.manifest.items() if key != "graphs"}
    assert written == manifest(written["version"])
    assert sum(p.stat().st_size for p in nano_folder.iterdir()) < 16e6


def test_better_than_bicubic_on_held_out_clips(nano_folder, media):
    """The mean gain is 0.3 dB for each family of degradations, and no clip is 0.1 dB worse.

    nano was trained for some of them and has never seen others. `official` is left out: it degrades
    each frame in its own way, so the result is no video.
    """
    nano = upscalers.bundle("nano", nano_folder)
    gains: dict[str, list[float]] = {}
    similar = []
    names = [name for name in sources.DEGRADATIONS if name != "official"]
    for source in sources.degraded(
        names, media / "train", [media / "hr" / "bikes.mp4"], 3, 6, seed=5
    ):
        clip = source.load()
        result, plain = nano(clip.low), upscalers.plain(clip.low)
        gain = metrics.psnr(result, clip.truth) - metrics.psnr(plain, clip.truth)
        gains.setdefault(source.group, []).append(gain)
        assert gain >= -0.1, (source.group, source.name, gain)
        similar.append(metrics.ssim(result, clip.truth) - metrics.ssim(plain, clip.truth))
    print(
        {
            group: f"{np.mean(values):+.3f} dB, least {min(values):+.3f} dB"
            for group, values in gains.items()
        }
    )
    for family in (["clean"], ["light", "heavy"], list(sources.FIXED)):
        assert np.mean([gain for group in family for gain in gains[group]]) >= 0.3, family
    assert np.mean(similar) >= 0.01
