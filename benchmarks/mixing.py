"""How near batches come to a shuffle of all tokens, for some windows.

    python -m benchmarks.mixing

No store is needed: the order depends on the number of images, their categories and the seed alone.
"""

import numpy as np

from spg_pipe.store.order import Mixing, measure_mixing

CATEGORIES = np.repeat([f"category {number:02d}" for number in range(15)], 115)
PATCHES, BATCH_TOKENS = 784, 8192


def _line(name: str, found: Mixing) -> str:
    return (
        f"| {name} | {found.images:.0f} of {found.images_expected:,.0f} "
        f"| {found.effective_images:.0f} of {found.effective_images_expected:,.0f} "
        f"| {found.categories:.1f} of {found.categories_expected:.1f} |"
    )


def main() -> None:
    """Print the table."""
    print("| batches | distinct images | effective images | categories |\n|---|---|---|---|")
    base = {"window_images": 1, "seed": 111}
    whole = measure_mixing(CATEGORIES, PATCHES, batch_tokens=None, batch_images=16, **base)
    print(_line("16 whole images", whole))
    for window in (32, 96, 512, len(CATEGORIES)):
        found = measure_mixing(
            CATEGORIES,
            PATCHES,
            batch_tokens=BATCH_TOKENS,
            batch_images=None,
            **(base | {"window_images": window}),
        )
        print(_line(f"window {window}", found))


if __name__ == "__main__":
    main()
