# SPDX-License-Identifier: MPL-2.0
"""Jobs of the program `starsr` on many machines, with Ray. See docs/farms.md."""
