# SPDX-License-Identifier: MPL-2.0
"""Where a Local Information Enhancement Module (LIEM) gates the features around an attention.

See the paper (arXiv 2501.02976), figure 9 and table 3.
"""

from collections.abc import Callable

from starsr.ops.primitives import Ops, V

#: (i) the input of the attention, as published; (ii) its output, before the residual sum;
#: (iii) the sum.
POSITIONS = ("i", "ii", "iii")


def check_position(position: str) -> None:
    """Raise `ValueError` unless `position` is one of `POSITIONS`."""
    if position not in POSITIONS:
        raise ValueError(
            f"liem_position is {position!r}, but must be one of {', '.join(POSITIONS)}"
        )


def gated_attention(
    ops: Ops[V], x: V, position: str, gate: Callable[[V], V], attend: Callable[[V], V]
) -> V:
    """Add attention to `x`, with the LIEM `gate` at `position`.

    `gate` and `attend` map features to features of the same shape.
    """
    if position == "i":
        return ops.add(attend(gate(x)), x)
    if position == "ii":
        return ops.add(gate(attend(x)), x)
    return gate(ops.add(attend(x), x))
