# SPDX-License-Identifier: MPL-2.0
"""Training as in the paper: for nano, and for the full network from a released checkpoint."""
