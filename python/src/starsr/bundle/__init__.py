# SPDX-License-Identifier: MPL-2.0
"""Model bundles: folders of ONNX graphs and `bundle.toml` (format: models/README.md)."""
