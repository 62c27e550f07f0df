# SPDX-License-Identifier: MPL-2.0
"""Where a Local Information Enhancement Module gates the features around an attention (paper, figure 9 and table 3)."""

#: (i) what attention reads, as published; (ii) what attention gives, before the residual sum; (iii) the sum.
POSITIONS = ("i", "ii", "iii")


def check_position(position: str) -> None:
    """Raises `ValueError` unless `position` is one of `POSITIONS`."""
    if position not in POSITIONS:
        raise ValueError(f"liem_position is {position!r}, but must be one of {', '.join(POSITIONS)}")


def gated_attention(ops, x, position: str, gate, attend):
    """`x` plus its attention, with the LIEM `gate` at `position`; `gate` and `attend` map features to features."""
    if position == "i":
        return ops.add(attend(gate(x)), x)
    if position == "ii":
        return ops.add(gate(attend(x)), x)
    return gate(ops.add(attend(x), x))
