"""The one reader of YAML that anybody may give: params.yaml, ready-made recipes, values of `--set`.

What comes out is small, and of plain values alone, whatever the text says.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    Event,
    ScalarEvent,
)
from ruamel.yaml.nodes import Node, ScalarNode

from spg_pipe.errors import SpgError, printable

_CHARACTERS = 100_000
"""Of a recipe; the longest of the project has 2,000."""
_DEPTH = 20
"""Lists and sections within each other; the project's recipes have 4."""
_VALUES = 10_000
"""Counted as often as aliases repeat them: 500 bytes of aliases can stand for 10^9 values."""


def read_text(path: Path) -> str:
    """The text of a file, cut where it is too long for `parse_yaml`; OSError, UnicodeDecodeError"""
    if path.exists() and not path.is_file():  # reading from a pipe might never end
        raise OSError("it is no file")
    with path.open(encoding="utf-8") as file:
        return file.read(_CHARACTERS + 1)


def parse_yaml(text: str, source: str) -> Any:
    """The content of a YAML text, read as DVC reads it; `source` is named in errors.

    An `SpgError` if it is no YAML, is too large, too deep or tagged, or names a key twice.
    """
    if len(text) > _CHARACTERS:
        raise SpgError(f"{source} has more than {_CHARACTERS:,} characters: that is no recipe.")
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    try:
        _require_small(YAML(typ="safe", pure=True).parse(text))
        return yaml.load(text)
    except Exception as error:  # damaged text ends in many others than ruamel's own, too
        fault = str(error).partition("\n\nTo suppress")[0]  # of the check of keys
        fault = fault.replace('in "<unicode string>", ', "at ")
        raise SpgError(f"{source} is not valid YAML: {fault}") from error


def _require_small(events: Iterable[Event]) -> None:
    """Refuse, before anything is built, what is nested too deep, repeats too much or has tags."""
    opened: list[tuple[str | None, int]] = []  # anchors, and the count before their first value
    sizes: dict[str | None, int] = {}  # how many values an anchor stands for
    count = 0
    for event in events:
        fault = ""
        if isinstance(event, CollectionEndEvent):
            anchor, before = opened.pop()
            sizes |= {anchor: count - before} if anchor else {}
        elif isinstance(event, AliasEvent):
            count += sizes.get(event.anchor, 1)
        elif isinstance(event, CollectionStartEvent | ScalarEvent):
            if event.tag or event.anchor in sizes:
                fault = (
                    "tags (!!int) and a second anchor of the same name are not read; leave it out"
                )
            if isinstance(event, CollectionStartEvent):
                opened.append((event.anchor, count))
            if event.anchor:  # a list that holds itself has no end
                sizes[event.anchor] = 1 if isinstance(event, ScalarEvent) else _VALUES
            count += 1
        if len(opened) > _DEPTH:
            fault = f"more than {_DEPTH} lists and sections within each other"
        if count > _VALUES:
            fault = f"more than {_VALUES:,} values, where an alias counts as what it repeats"
        if fault:
            raise MarkedYAMLError(problem=fault, problem_mark=event.start_mark)


class _Constructor(SafeConstructor):
    """Names the place of a value that is none, such as 2001-99-99 or a number of 5,000 digits."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and value.bit_length() > 63:
                raise ValueError(value)
            if isinstance(node, ScalarNode) and printable(node.value) != node.value:
                raise ValueError(value)
        except YAMLError:
            raise
        except Exception as error:
            fault = f"{str(node.value)[:40]!r} is no number, date or text that a recipe can hold; "
            fault += "put quotes around a text, and leave control characters out"
            raise ConstructorError(None, None, fault, node.start_mark) from error
        return value
