"""Damaging JSON deep inside, and bytes: what strangers, editors and disks do to a file."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from spg_pipe.errors import SpgError

DIGITS = "1" * 5000
_NUMBERS = [0, 1, -1, 2, 7, 2**31, 2**63, 2**64, 10**30, 10**400]
_FLOATS = [0.5, -0.0, 1e-320, 1e30, 1e308, float("nan"), float("inf")]
_NAMES = ["open_clip:hf-hub:a/b", "hf-hub:a/b", "local-dir:/etc", "timm:hf-hub:a/b", "openclip"]
_TEXTS = [
    "",
    "x",
    "0",
    "../../../../etc/hosts",
    "\x1b[31mred",
    "a\nb",
    "\ud800",
    "é" * 9999,
    *_NAMES,
]
_NESTED: list[Any] = [[], {}, [[]], [None], {"": 0}, {"x": {"x": []}}, [1, 2, 3]]
ANY: list[Any] = [*_NUMBERS, *_FLOATS, *_TEXTS, *_NESTED, None, True, False]
VALUES = st.sampled_from(ANY).map(copy.deepcopy)
DEEP = "[" * 3000 + "]" * 3000


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in JSON but the whole."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    return [way for key, below in items for way in ((*above, key), *places(below, (*above, key)))]


def at(value: Any, way: Sequence[Any]) -> Any:
    """What lies in a place of JSON."""
    for step in way:
        value = value[step]
    return value


def _is_number(value: Any) -> bool:
    """Whether it can be multiplied: an integer of thousands of digits by no fraction."""
    return isinstance(value, int | float) and abs(value) < 1e300


@st.composite
def damaged_json(draw: st.DrawFn, value: Any) -> Any:
    """A copy with one to three values replaced, removed, doubled, or put elsewhere."""
    changed = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        ways = places(changed)
        if not ways:
            break
        *above, key = draw(st.sampled_from(ways))
        parent = at(changed, above)
        how = draw(st.sampled_from(["replace"] * 4 + ["remove", "add", "number"]))
        if how == "remove":
            del parent[key]
        elif how == "number" and _is_number(parent[key]):
            parent[key] = parent[key] * draw(st.sampled_from([-1, 0, 2, 1e6, 10**9]))
        elif how == "add" and isinstance(parent, dict):
            parent[draw(st.sampled_from(["x", "../x", "24", "fingerprint", key]))] = draw(VALUES)
        elif how == "add":
            parent.append(copy.deepcopy(parent[key]))
        else:
            parent[key] = draw(VALUES)
    return changed


@st.composite
def as_text(draw: st.DrawFn, value: Any) -> bytes:
    """A value as JSON, now and then with what no Python value gives: depth, digits, other bytes."""
    text = json.dumps(value).encode()
    how = draw(st.sampled_from(["whole"] * 12 + ["deep", "digits", "bytes", "cut"]))
    if how == "deep":
        text = text.replace(b"null", DEEP.encode(), 1)
    elif how == "digits":
        text = text.replace(b"1", DIGITS.encode(), 1)
    elif how == "bytes":
        text = draw(damaged_bytes(text))
    elif how == "cut":
        text = text[: draw(st.integers(0, len(text)))]
    return text


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """A copy with some bytes changed, cut off, or added."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        if changed:
            place = draw(
                st.integers(0, len(changed) - 1) | st.integers(0, min(len(changed), 64) - 1)
            )
            changed[place] = draw(st.integers(0, 255))
    how = draw(st.sampled_from(["same"] * 3 + ["cut", "longer"]))
    if how == "cut":
        del changed[draw(st.integers(0, len(changed))) :]
    return bytes(changed) + (b"\0" * 7 if how == "longer" else b"")


def message_of(call: Callable[[], object]) -> str:
    """What a call's SpgError says, which a person must be able to read; empty if it succeeds."""
    try:
        call()
    except SpgError as error:
        text = str(error)
    else:
        return ""
    shown = all(c == "\n" or " " <= c < "\x7f" or c >= "\xa0" for c in text)
    assert shown, repr(text)
    assert 10 < len(text) < 1500, text
    return text
