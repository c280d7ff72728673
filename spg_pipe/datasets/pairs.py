"""Whose a mask is: the image of its name in the folder of its name.

Folders that only say what is in them (`images`, `train`) do not matter, unless images of one name
differ in them alone. Masks in a folder that is named like the image are one.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from spg_pipe.datasets.names import (
    Place,
    class_in,
    composed,
    form,
    image_names,
    is_mask_word,
    known_as,
    may_hold_masks,
    says_nothing,
    shorter,
    splits_in,
)
from spg_pipe.errors import SpgError
from spg_pipe.images.decoding import UnusableFileError
from spg_pipe.images.reading import read_mask


def pair(root: Path, images: Mapping[Path, Place], masks: Mapping[Path, Place]) -> dict[Path, Path]:
    """Image → its mask, or the folder of its masks, by name; images without one are left out.

    Both are given with their places; folders above `root` say nothing.

    SpgError if two images fit one mask, or two masks that are not in a folder of their own one
    image.
    """
    at: dict[tuple[Place, str], list[Path]] = defaultdict(list)
    beside: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    named: dict[str, list[tuple[Place, Path]]] = defaultdict(list)
    inside: dict[Path, list[Path]] = defaultdict(list)
    for image, place in images.items():
        folders, name = tuple(map(form, place)), form(image.stem)
        at[folders, name].append(image)
        beside[image.parent, name].append(image)
        inside[image.parent].append(image)
        for known in known_as(image):
            named[known].append((folders, image))
    pairs: dict[Path, Path] = {}
    places = {folders for folders, _ in at}
    classes = {class_in(part) for place in images.values() for part in place} - {""}
    for mask, place in masks.items():
        holds = {*mask.relative_to(root).parts[:-1]} - {*place}
        kinds = classes & {class_in(part) for part in holds if may_hold_masks(part)}
        for name, folders, chosen in _addresses(mask, tuple(map(form, place))):
            key = form(name)
            if chosen != mask and (*folders, key) in places:
                continue  # a class with masks, not an image with parts of its mask
            same = beside.get((mask.parent, key)) if chosen == mask else None
            if name == mask.stem and not same:
                longer = (beside.get((mask.parent, form(n))) for n in shorter(name))
                alone = _only(inside[mask.parent]) if is_mask_word(name) else []
                same = next(filter(None, longer), alone)
            owners = same or at.get((folders, key)) or []
            owners = _called(name, owners or _elsewhere(named.get(key, ()), folders, kinds))
            owners = _nearest(root, mask, owners)
            if len(owners) > 1:
                raise SpgError(
                    f"The images {owners[0]} and {owners[1]} share one name, so it is unclear "
                    f"whose mask {mask} is. Rename one of them (and its mask)."
                )
            given = pairs.setdefault(owners[0], chosen) if owners else chosen
            if given != chosen and not _alike(given, chosen):
                together = mask.parent / "masks" / owners[0].stem
                raise SpgError(
                    f"Several masks fit the image {owners[0]}: {pairs[owners[0]]}, {chosen}. Keep "
                    f"one of them; or, if each shows a part, move them into a folder {together}."
                )
            if owners:
                break
    return pairs


def _addresses(mask: Path, place: Place) -> Iterator[tuple[str, Place, Path]]:
    """Names that a mask's image may have, the image's place, and what is then its mask."""
    yield from ((name, place, mask) for name in image_names(mask.stem))
    if place:
        yield place[-1], place[:-1], mask.parent


def _elsewhere(images: Sequence[tuple[Place, Path]], place: Place, kinds: set[str]) -> list[Path]:
    """The image of a name whose folders begin or end with the mask's, if there is only one.

    And of one of `kinds`, if there are any: `dent_masks/` is of `dent/`.
    """
    n = len(place)
    fitting = (
        [i for p, i in images if p[:n] == place or (n and p[-n:] == place)]
        if not kinds
        else [i for p, i in images if kinds & {*map(class_in, p)}]
    )
    return fitting if len(fitting) == 1 else []


def _called(name: str, images: list[Path]) -> list[Path]:
    """Of images whose names differ in case alone, those with this very name, if there are any."""
    return [i for i in images if composed(i.stem) == composed(name)] or images


def _alike(mask: Path, other: Path) -> bool:
    """Whether masks mark the same pixels, as those that tools write by class and by object."""
    try:
        return np.array_equal(read_mask(mask, exif=False), read_mask(other, exif=False))
    except UnusableFileError:
        return False


def _nearest(root: Path, mask: Path, images: list[Path]) -> list[Path]:
    """Of images of one name, those in the most folders of the mask's; none of another split."""
    parts = {*mask.relative_to(root).parts[:-1]}
    splits = splits_in(parts)
    if splits:
        own = ((i, splits_in(i.relative_to(root).parts[:-1])) for i in images)
        images = [image for image, theirs in own if not theirs or theirs & splits]
    shared = [len(parts & {*image.relative_to(root).parts[:-1]}) for image in images]
    return [image for image, n in zip(images, shared, strict=True) if n == max(shared)]


def _only(images: list[Path]) -> list[Path]:
    """The image of a folder, if there is one, or one that is called `image`, `rgb`, …."""
    images = [image for image in images if says_nothing(image.stem)] or images
    return images if len(images) == 1 else []
