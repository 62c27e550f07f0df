# SPDX-License-Identifier: MPL-2.0
"""The model of the paper: I2VGen-XL's U-Net with a video ControlNet and LIEM, its autoencoder and its text encoder."""
