# SPDX-License-Identifier: MPL-2.0
"""The networks, described over the primitive operations of `starsr.ops`."""
