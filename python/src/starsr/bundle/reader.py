# SPDX-License-Identifier: MPL-2.0
"""Runs a bundle in Python as the plugin does, for one window and one evaluation."""

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file

from starsr.bundle.noise import frame_noise
from starsr.data.resize import bicubic
from starsr.models.schedule import alphas_sigmas


class Bundle:
    """The graphs of a bundle without a text encoder, on the CPU.

    `detail` is the share of the weights for detail, or that of the manifest. `precision` is
    "float", "fp16" or "int8"; graphs that the bundle does not have in it compute in floats. 8-bit
    integers are computed by floats, as integer kernels of processors without VNNI overflow.
    """

    def __init__(self, folder: Path, detail: float | None = None, precision: str = "float") -> None:
        text = (folder / "bundle.toml").read_text(encoding="utf-8")
        self.manifest = tomllib.loads(text)
        self.precision = precision
        self.sessions = {
            role: onnxruntime.InferenceSession(
                str(folder / entry.get(precision, entry)["file"]),
                self._options(folder, entry, detail),
                providers=["CPUExecutionProvider"],
            )
            for role, entry in self.manifest["graphs"].items()
        }
        if "upscaler" in self.sessions:
            return
        schedule = self.manifest["schedule"]
        limits = ("logsnr_min", "logsnr_max", "scale_min", "scale_max")
        names = ("timesteps", *limits, "zero_terminal_snr")
        self.alphas, self.sigmas = alphas_sigmas(**{name: schedule[name] for name in names})

    def _options(
        self, folder: Path, entry: dict[str, Any], detail: float | None
    ) -> onnxruntime.SessionOptions:
        """Return options of a session, with blended weights where the bundle has two sets."""
        options = onnxruntime.SessionOptions()
        if self.precision == "int8":
            # Higher levels fuse layers with the conversions around them.
            level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.graph_optimization_level = level
        table = self.manifest.get("detail")
        if table is None:
            return options
        share = np.float32(table["default"] if detail is None else detail)
        own, others = (
            load_file(folder / file["file"]) for file in (entry["data"][0], table["weights"])
        )
        values = {name: w.astype(np.float32) for name, w in own.items()}
        for name, value in values.items():
            values[name] = (value + share * (others[name] - value)).astype(np.float16)
        # The session does not keep the values alive while it loads.
        self._weights = [onnxruntime.OrtValue.ortvalue_from_numpy(w) for w in values.values()]
        options.add_external_initializers(list(values), self._weights)
        return options

    def run(self, role: str, **feeds: np.ndarray) -> list[np.ndarray]:
        """Return the outputs of one graph."""
        return list(self.sessions[role].run(None, feeds))

    def velocity(self, x: np.ndarray, t: int, hint: np.ndarray) -> np.ndarray:
        """Predict `v` `[1,C,F,h,w]` with ControlNet and denoiser."""
        time = np.array([t], np.int64)
        controls = self.run("controlnet", x=x, t=time, hint=hint)
        named = {f"control_{i}": control for i, control in enumerate(controls)}
        return self.run("denoiser", x=x, t=time, **named)[0]

    def upscale(self, low: np.ndarray, seed: int = 0) -> np.ndarray:
        """Upscale `[F,h,w,3]` uint8 to `[F,4h,4w,3]` in [0,1].

        The clip is one window with one evaluation and the default strength, under the plugin's
        noise for the first frames of a stream.
        """
        source = torch.from_numpy(low).permute(0, 3, 1, 2).float() / 255
        if "upscaler" in self.sessions:
            return self._upscale_directly(source)
        plain = bicubic(source).clamp(0, 1)
        pixels = plain * 2 - 1
        height, width = pixels.shape[-2:]
        below, right = self._legal(height, "height") - height, self._legal(width, "width") - width
        padded = F.pad(pixels, (0, right, 0, below), mode="replicate")
        hint = self.run("vae_encoder", pixels=padded.numpy())[0].transpose(1, 0, 2, 3)[None]
        t = self.manifest["schedule"]["noise_level"] - 1
        a, s = np.float32(self.alphas[t]), np.float32(self.sigmas[t])
        _, channels, frames, rows, columns = hint.shape
        size = (channels, rows, columns)
        noise = [frame_noise(seed, f, 0, int(np.prod(size))).reshape(size) for f in range(frames)]
        x = a * hint + s * np.stack(noise, 1)[None]
        x0 = a * x - s * self.velocity(x, t, hint)
        latents = np.ascontiguousarray(x0[0].transpose(1, 0, 2, 3))
        decoded = self.run("vae_decoder", latents=latents)[0]
        restored = np.clip(decoded[:, :, :height, :width] * 0.5 + 0.5, 0, 1)
        base, strength = plain.numpy(), self.manifest["sampler"]["strength"]
        result: np.ndarray = (base + strength * (restored - base)).transpose(0, 2, 3, 1)
        return result

    def _upscale_directly(self, low: torch.Tensor) -> np.ndarray:
        scale = self.manifest["scale"]["default"]
        height, width = (scale * side for side in low.shape[-2:])
        below, right = self._legal(height, "height") - height, self._legal(width, "width") - width
        padded = F.pad(low, (0, right // scale, 0, below // scale), mode="replicate")
        high = self.run("upscaler", low=padded.numpy())[0]
        result: np.ndarray = high[:, :, :height, :width].transpose(0, 2, 3, 1)
        return result

    def _legal(self, size: int, axis: str) -> int:
        """Return the least legal length of a canvas side that holds `size` pixels."""
        rule = self.manifest["canvas"][axis]
        least: int = max(size, rule["minimum"])
        return least + int((rule["offset"] - least) % rule["multiple"])
