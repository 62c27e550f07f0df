# SPDX-License-Identifier: MPL-2.0
"""Networks, training, degradation, export and evaluation for the starsr GStreamer element."""
