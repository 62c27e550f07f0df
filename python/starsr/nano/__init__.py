# SPDX-License-Identifier: MPL-2.0
"""The small bundle that ships with the plugin: its networks and its export."""
