"""Files of annotation tools: told by name what they are, because only masks are read."""

import re
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_HEAD = 4096
"""Bytes that tell a format."""
_FORMATS = {
    "LabelMe": (".json", rb'"shapes"\s*:'),
    "Supervisely": (".json", rb'"objects"\s*:\s*\['),
    "COCO": (".json", rb'"(images|annotations|categories|licenses)"\s*:\s*\['),
    "Pascal VOC": (".xml", rb"<annotation\b"),
    "CVAT": (".xml", rb"<annotations\b"),
    "YOLO": (".txt", rb"\A\s*\d+( +-?\d*\.?\d+){4,}\s*($|[\r\n])"),
    "run lengths": (".csv", rb"EncodedPixels"),
}
"""Format → ending, in lower case, and what its files begin with or hold near the beginning."""


def by_format(files: Sequence[Path], other: str) -> dict[str, list[Path]]:
    """Files by what is said of them: annotations of a format, or `other`. In the order given."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        name = _format(file)
        groups[f"annotations ({name}) are not read, export masks as PNG" if name else other].append(
            file
        )
    return groups


def _format(file: Path) -> str | None:
    ending = file.suffix.lower()
    signs = {name: sign for name, (of, sign) in _FORMATS.items() if of == ending}
    head = b""
    if signs:
        with suppress(OSError), file.open("rb") as stream:  # only a word in a note hangs on it
            head = stream.read(_HEAD)
    return next((name for name, sign in signs.items() if re.search(sign, head)), None)
