# SPDX-License-Identifier: MPL-2.0
"""Media on disk and in memory: photographs, video, and folders of low- and high-quality pairs."""
