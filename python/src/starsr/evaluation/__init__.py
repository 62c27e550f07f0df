# SPDX-License-Identifier: MPL-2.0
"""Measures and compares upscalers, with a report in HTML and JSON."""
