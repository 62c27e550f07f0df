# SPDX-License-Identifier: MPL-2.0
"""Runs a bundle in Python as the plugin does for one window and one evaluation."""

import tomllib
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F

from starsr.bundle.noise import frame_noise
from starsr.data.resize import bicubic
from starsr.models.schedule import alphas_sigmas


class Bundle:
    """The graphs of a bundle without a text encoder, on the CPU."""

    def __init__(self, folder: Path) -> None:
        self.manifest = tomllib.loads((folder / "bundle.toml").read_text(encoding="utf-8"))
        self.sessions = {
            role: onnxruntime.InferenceSession(str(folder / entry["file"]), providers=["CPUExecutionProvider"])
            for role, entry in self.manifest["graphs"].items()
        }
        schedule = self.manifest["schedule"]
        names = ("timesteps", "logsnr_min", "logsnr_max", "scale_min", "scale_max", "zero_terminal_snr")
        self.alphas, self.sigmas = alphas_sigmas(**{name: schedule[name] for name in names})

    def run(self, role: str, **feeds: np.ndarray) -> list[np.ndarray]:
        """Outputs of one graph."""
        return self.sessions[role].run(None, feeds)

    def velocity(self, x: np.ndarray, t: int, hint: np.ndarray) -> np.ndarray:
        """`v` `[1,C,F,h,w]` through ControlNet and denoiser."""
        time = np.array([t], np.int64)
        controls = self.run("controlnet", x=x, t=time, hint=hint)
        return self.run("denoiser", x=x, t=time, **{f"control_{i}": c for i, c in enumerate(controls)})[0]

    def upscale(self, low: np.ndarray, seed: int = 0) -> np.ndarray:
        """`[F,4h,4w,3]` in [0,1] from uint8 `[F,h,w,3]`, as one window with one evaluation and the default strength, under the
        noise of the plugin for the first frames."""
        plain = bicubic(torch.from_numpy(low).permute(0, 3, 1, 2).float() / 255).clamp(0, 1)
        pixels = plain * 2 - 1
        height, width = pixels.shape[-2:]
        legal = [self._legal(size, axis) for size, axis in ((height, "height"), (width, "width"))]
        padded = F.pad(pixels, (0, legal[1] - width, 0, legal[0] - height), mode="replicate")
        hint = self.run("vae_encoder", pixels=padded.numpy())[0].transpose(1, 0, 2, 3)[None]
        t = self.manifest["schedule"]["noise_level"] - 1
        a, s = np.float32(self.alphas[t]), np.float32(self.sigmas[t])
        _, channels, frames, rows, columns = hint.shape
        noise = [frame_noise(seed, f, 0, channels * rows * columns).reshape(channels, rows, columns) for f in range(frames)]
        x = a * hint + s * np.stack(noise, 1)[None]
        x0 = a * x - s * self.velocity(x, t, hint)
        decoded = self.run("vae_decoder", latents=np.ascontiguousarray(x0[0].transpose(1, 0, 2, 3)))[0]
        restored = np.clip(decoded[:, :, :height, :width] * 0.5 + 0.5, 0, 1)
        plain, strength = plain.numpy(), self.manifest["sampler"]["strength"]
        return (plain + strength * (restored - plain)).transpose(0, 2, 3, 1)

    def _legal(self, size: int, axis: str) -> int:
        rule = self.manifest["canvas"][axis]
        size = max(size, rule["minimum"])
        return size + (rule["offset"] - size) % rule["multiple"]
