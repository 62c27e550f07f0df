# SPDX-License-Identifier: MPL-2.0
"""Primitive operations. A network is described once over `Ops` and serves three back-ends.

`Declare` lists the parameters, `TorchOps` computes, and `OnnxOps` writes an ONNX graph.
`VideoOps` extends all three by what CogVideoX's networks need.
"""

from starsr.ops.declare import Declare, Parameter
from starsr.ops.primitives import Ops

__all__ = ["Declare", "Ops", "Parameter"]
