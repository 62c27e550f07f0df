# SPDX-License-Identifier: MPL-2.0
"""Low-quality clips made from clean ones, coherent in time: what a real camera, archive or stream does to a video."""
