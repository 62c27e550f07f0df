# SPDX-License-Identifier: MPL-2.0
"""Colour constants."""

import numpy as np

#: RGB to YCbCr, BT.601, full range, without offsets.
YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
