"""Files that are no images: notes name those of annotation tools, because only masks are read."""

import re
from contextlib import suppress
from pathlib import Path

_HEAD = 4096
"""Bytes of a file that tell its format."""
_FORMATS = (
    (".json", rb'"shapes"\s*:', "LabelMe"),
    (".json", rb'"objects"\s*:\s*\[', "Supervisely"),
    (".json", rb'"(images|annotations|categories|licenses)"\s*:\s*\[', "COCO"),
    (".xml", rb"<annotation\b", "Pascal VOC"),
    (".xml", rb"<annotations\b", "CVAT"),
    (".txt", rb"\A\s*\d+( +-?\d*\.?\d+){4,}\s*($|[\r\n])", "YOLO"),
    (".csv", rb"EncodedPixels", "run lengths"),
)
"""Ending, what stands near the file's beginning, and the format."""
_OTHER_PICTURES = frozenset(
    {".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".jxl", ".dcm", ".npy", ".raw"}
)


def what_it_is(file: Path) -> str:
    """What a note says of a file that is no image; one that cannot be read is any file."""
    signs = [(sign, name) for ending, sign, name in _FORMATS if ending == file.suffix.lower()]
    head = b""
    if signs:
        with suppress(OSError), file.open("rb") as stream:  # only a word of a note depends on it
            head = stream.read(_HEAD)
    for sign, name in signs:
        if re.search(sign, head):
            return f"{name} annotations, which are not read: export masks as PNG"
    if file.suffix.lower() in _OTHER_PICTURES:
        return "in a format that is not read: convert it to PNG"
    return "not an image file"
