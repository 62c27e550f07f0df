# SPDX-License-Identifier: MPL-2.0
"""STAR's noise schedule, a log-SNR cosine that is interpolated between two scales.

docs/star.md derives it.
"""

import numpy as np

TIMESTEPS = 1000
#: Timestep of the first evaluation, which starts from the noised low-quality latents.
T_START = 899
#: The schedule as the manifest of a bundle states it.
MANIFEST = {
    "kind": "logsnr-cosine-interp",
    "prediction": "v",
    "timesteps": TIMESTEPS,
    "logsnr_min": -15.0,
    "logsnr_max": 15.0,
    "scale_min": 2.0,
    "scale_max": 4.0,
    "zero_terminal_snr": True,
    "noise_level": T_START + 1,
}


def alphas_sigmas(
    timesteps: int = TIMESTEPS,
    logsnr_min: float = -15.0,
    logsnr_max: float = 15.0,
    scale_min: float = 2.0,
    scale_max: float = 4.0,
    zero_terminal_snr: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the signal and noise levels `(alpha, sigma)` of all timesteps.

    Each is `[timesteps]` float64, and `alpha**2 + sigma**2 == 1`.
    """
    a, b = np.arctan(np.exp(-0.5 * logsnr_min)), np.arctan(np.exp(-0.5 * logsnr_max))
    u = np.linspace(1.0, 0.0, timesteps)
    shifted = -2.0 * np.log(np.tan(a + u * (b - a)))
    logsnr = shifted - 2.0 * (u * np.log(scale_min) + (1.0 - u) * np.log(scale_max))
    sigma = np.sqrt(1.0 / (1.0 + np.exp(logsnr)))
    if zero_terminal_snr:
        least, most = sigma.min(), sigma.max()
        sigma = least + (1.0 - least) / (most - least) * (sigma - least)
    return np.sqrt(np.maximum(1.0 - sigma**2, 0.0)), sigma
