# SPDX-License-Identifier: MPL-2.0
"""Measures and compares upscalers: figures, a report to look at, and the program `starsr-eval`."""
