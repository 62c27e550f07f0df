# SPDX-License-Identifier: MPL-2.0
"""`starsr-export`: converts STAR, STAR on CogVideoX (`cogvideox`) and a trained `student`."""

import sys

from starsr.export import cogvideox, star, student


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["cogvideox"]:
        return cogvideox.main(given[1:])
    if given[:1] == ["student"]:
        return student.main(given[1:])
    return star.main(given)


if __name__ == "__main__":
    sys.exit(main())
