# SPDX-License-Identifier: MPL-2.0
"""Conversion of trained networks into model bundles."""
