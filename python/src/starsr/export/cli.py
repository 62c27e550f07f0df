# SPDX-License-Identifier: MPL-2.0
"""`starsr-export`: converts STAR, and as `starsr-export cogvideox` STAR on CogVideoX."""

import sys

from starsr.export import cogvideox, star


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["cogvideox"]:
        return cogvideox.main(given[1:])
    return star.main(given)


if __name__ == "__main__":
    sys.exit(main())
