# SPDX-License-Identifier: MPL-2.0
"""The noise schedule of STAR, `logsnr_cosine_interp` (SPEC A.4)."""

import numpy as np

TIMESTEPS = 1000
#: Timestep at which inference starts from the noised low-quality latent (900 noise levels).
T_START = 899
#: The schedule as a bundle's manifest gives it.
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
    """Signal and noise levels `(alpha, sigma)`, each `[timesteps]` float64 with `alpha**2 + sigma**2 == 1`."""
    a, b = np.arctan(np.exp(-0.5 * logsnr_min)), np.arctan(np.exp(-0.5 * logsnr_max))
    u = np.linspace(1.0, 0.0, timesteps)
    shifted = -2.0 * np.log(np.tan(a + u * (b - a)))
    logsnr = shifted - 2.0 * (u * np.log(scale_min) + (1.0 - u) * np.log(scale_max))
    sigma = np.sqrt(1.0 / (1.0 + np.exp(logsnr)))
    if zero_terminal_snr:
        sigma = sigma.min() + (1.0 - sigma.min()) / (sigma.max() - sigma.min()) * (sigma - sigma.min())
    return np.sqrt(np.maximum(1.0 - sigma**2, 0.0)), sigma
