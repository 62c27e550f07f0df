# SPDX-License-Identifier: MPL-2.0
"""Training as in the paper, of nano from scratch and of the full network from a checkpoint."""
