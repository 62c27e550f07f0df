# SPDX-License-Identifier: MPL-2.0
"""STAR: I2VGen-XL's U-Net with a video ControlNet and LIEM, an autoencoder, a text encoder."""
