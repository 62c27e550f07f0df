# SPDX-License-Identifier: MPL-2.0
"""nano, the small model that ships with the plugin."""
