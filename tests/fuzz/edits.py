"""JSON from a fuzzer's bytes: as they are, or as edits of a valid one."""

from __future__ import annotations

import copy
import json
from typing import Any

from fuzz.mutations import ANY, at, places
from fuzz.test_detectors import sealed
from spg_pipe.artefacts.files import fingerprint

RAW, EDITS = b"=", b"~"


def edited(content: bytes, whole: bytes) -> bytes:
    """JSON as content describes it: `=` and its bytes, or `~` and edits of a whole one.

    Bytes that a fuzzer changes seldom stay JSON. An edit has four bytes, the place (two), what is
    done, and with what: so nearly each input is another value in some place, and edits add up.
    """
    if content[:1] != EDITS:
        return content[1:]
    value = json.loads(whole)
    for start in range(1, min(len(content), 33), 4):
        high, low, deed, which = content[start : start + 4].ljust(4, b"\0")
        ways = places(value)
        if not ways:
            break
        *above, key = ways[(high << 8 | low) % len(ways)]
        parent = at(value, above)
        new = ANY[which % len(ANY)]
        if deed % 8 == 0:
            del parent[key]
        elif deed % 8 == 1 and isinstance(parent, dict):
            parent[str(new)[:50]] = parent.pop(key)
        elif deed % 8 == 2 and isinstance(parent, list):
            parent += copy.deepcopy(parent)[: which % 5]
        elif deed % 8 == 3 and isinstance(parent[key], int | float):
            parent[key] = parent[key] * which if deed & 8 else parent[key] + which - 128
        elif deed % 8 == 4:
            parent[key] = copy.deepcopy(at(value, ways[which % len(ways)]))
        else:
            parent[key] = copy.deepcopy(new)
    try:
        return json.dumps(value).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return whole


def with_seal(content: bytes, whole: bytes, model: Any) -> bytes:
    """The JSON that content describes, with the fingerprint and the seal that it gives."""
    changed = edited(content, whole)
    try:
        value = json.loads(changed)
        told = {k: v for k, v in value.items() if v is not None or k not in model.OPTIONAL}
        told.pop("seal", None)
        value = sealed(told, model) if "fingerprint" in model.model_fields else told
        return json.dumps(value | {"seal": fingerprint(value)}).encode()
    except (AttributeError, ValueError, RecursionError):  # no mapping, no JSON, too deep
        return changed


def starts(whole: bytes) -> list[bytes]:
    """A corpus of JSON: the whole, and first edits."""
    some = [bytes([n // 2, n * 37 % 256, n % 8, n * 11 % 256]) for n in range(24)]
    return [RAW + whole, *(EDITS + each for each in some)]
