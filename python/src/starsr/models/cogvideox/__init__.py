# SPDX-License-Identifier: MPL-2.0
"""STAR on CogVideoX: a diffusion transformer with LIEM, a causal autoencoder, T5's encoder."""
