# SPDX-License-Identifier: MPL-2.0
"""Makes low-quality clips from clean ones as cameras, archives and streams do, coherent in time."""
