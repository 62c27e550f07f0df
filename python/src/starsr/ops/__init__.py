# SPDX-License-Identifier: MPL-2.0
"""A network is described once, over the primitive operations of one of these back-ends.

`Declare` lists the parameters, `TorchOps` computes (training, references), `OnnxOps` writes the graph.
"""

from starsr.ops.declare import Declare, Parameter

__all__ = ["Declare", "Parameter"]
