# SPDX-License-Identifier: MPL-2.0

import numpy as np
import pytest
from safetensors.numpy import load_file

from starsr.models.schedule import alphas_sigmas


def test_published_values():
    alphas, sigmas = alphas_sigmas()
    expected = {0: 0.00110626, 1: 0.00425177, 500: 0.9430097, 899: 0.9990937, 999: 1.0}
    for t, value in expected.items():
        assert sigmas[t] == pytest.approx(value, abs=1e-6)
    assert alphas[899] == pytest.approx(0.0425660, abs=1e-5)
    assert alphas[999] == 0
    np.testing.assert_allclose(alphas**2 + sigmas**2, 1, atol=1e-12)


def test_reference_tables(reference):
    golden = load_file(reference / "golden_sampler" / "schedule.safetensors")
    alphas, sigmas = alphas_sigmas()
    np.testing.assert_allclose(sigmas, golden["sigmas"], atol=1e-6)
    np.testing.assert_allclose(alphas[:900], golden["alphas"][:900], atol=1e-5)
