"""The JSON of an artefact as a typed record: written once, read once and checked as a whole.

A room describes its artefact's JSON as a `Record` with the literals `kind` and `format`. What was
written by another version, edited by hand or damaged is refused when it is read, with the file, the
place in it and the command that makes it again; no code meets a key that may be missing.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
)

from spg_pipe.artefacts.files import fingerprint, write_text
from spg_pipe.artefacts.reading import MOST_BYTES, damaged, read_file, read_json, reading, shown
from spg_pipe.errors import DamagedError, SpgError


def inside(path: str) -> str:
    """The path, if it stays below its folder; else ValueError."""
    if PurePosixPath(path).is_absolute() or ".." in path.split("/"):
        raise ValueError(f"{path} is outside the folder")
    return path


Inside = Annotated[str, AfterValidator(inside)]
"""A relative path in a file that anybody may have written: below the dataset's folder, or empty."""


def _not_infinite(value: float) -> float:
    if math.isinf(value):
        raise ValueError("a number or null is expected, not an infinity")
    return value


FigureOrNaN = Annotated[
    float,
    Field(allow_inf_nan=True),
    BeforeValidator(lambda value: math.nan if value is None else value),
    AfterValidator(_not_infinite),
    PlainSerializer(lambda value: None if math.isnan(value) else value, when_used="json"),
]
"""A number that may be undefined: NaN in Python, null in JSON."""


Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f-\x9f]{0,500}$")]
"""One line of text: what something is called, a fingerprint."""
FileName = Annotated[Name, AfterValidator(inside)]
"""Of a file below the folder of the JSON that names it."""
LayerName = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,40}(@[0-9]{1,6})?$")]
"""A layer, perhaps at one side of several (`TokenKey.name`): part of the names of files."""
LARGEST_SIDE = 16_384
"""Pixels: a mask of this side has 268 MB."""
Count = Annotated[int, Field(ge=0, le=10**12)]
Size = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
"""Pixels or patches along a side."""
ImageSide = Annotated[int, Field(ge=1, le=10**9)]
"""Pixels of an original image's side; SPG_MAX_MEGAPIXELS bounds the area when it is read."""
Figure = Annotated[float, Field(ge=-1e9, le=1e9)]
"""A number of a formula: sums and products of these and of tokens do not overflow."""
Deviation = Annotated[float, Field(ge=1e-13, le=1e9)]
"""Divides. A fit takes what is below 1e-12 for a constant, of deviation 1."""
_SEAL = "seal"
Seed = Annotated[int, Field(ge=0, lt=2**64)]


class Record(BaseModel):
    """Base of every artefact's JSON: frozen, with no unknown key and no number that is none.

    A record with a field `fingerprint: str = ""` is made whole with `sealed`, and must give that
    fingerprint when it is read.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    BESIDE: ClassVar[frozenset[str]] = frozenset(
        {"fingerprint", "versions", "tensors_sha256", "files_sha256"}
    )
    """Fields that do not determine the content: provenance, and digests of the files beside it."""
    OPTIONAL: ClassVar[frozenset[str]] = frozenset()
    """Fields that are written only where they apply."""

    def content(self) -> dict[str, object]:
        """What determines the artefact, as JSON has it."""
        return self.model_dump(mode="json", exclude=set(self.BESIDE))

    def sealed(self) -> Self:
        """The same record with its fingerprint: SHA-256 of the canonical JSON of `content`."""
        return self.model_copy(update={"fingerprint": fingerprint(self.content())})


AnyRecord = TypeVar("AnyRecord", bound=Record)


def write_record(path: Path, record: Record) -> None:
    """Write a record as JSON, atomically; see `record_text`."""
    write_text(path, record_text(record))


def record_text(record: Record) -> str:
    """A record as JSON, with a seal: the fingerprint of all that it says.

    NaN of a `FigureOrNaN` is null.
    """
    content = record.model_dump(mode="json")
    content[_SEAL] = fingerprint(content)
    return json.dumps(content, indent=2, allow_nan=False)


def read_record(path: Path, model: type[AnyRecord], what: str, command: str) -> AnyRecord:
    """Read a record that `write_record` wrote.

    Parameters
    ----------
    path : Path
        The JSON file.
    model : type of Record
        What it must hold.
    what, command : str
        For the errors: the artefact's name in words ("detector"), and the command that makes it
        (`spg-pipe train-guides`).

    Raises
    ------
    SpgError
        If the file is missing, or is of another kind of artefact.
    DamagedError
        If it is not JSON, of another format, has an unknown, missing or wrong value, or does not
        give its own fingerprint or seal. Files of older versions have no seal.
    """
    with reading(path, what, command):
        content = read_file(path, MOST_BYTES)
    return parse_record(content, path, model, what, command)


def parse_record(
    text: bytes | str, path: Path | str, model: type[AnyRecord], what: str, command: str
) -> AnyRecord:
    """A record from JSON that lies within a file, as `read_record` reads a whole one."""
    with reading(path, what, command):
        raw = read_json(text)
    if not isinstance(raw, dict):
        fault = f"it holds a {type(raw).__name__}, expected an object with keys"
        raise damaged(path, what, fault, command)
    _require_version(raw, path, model, what, command)
    seal = None if _SEAL in model.model_fields else raw.pop(_SEAL, None)
    with reading(path, what, command):
        if seal is not None:
            text = json.dumps(raw)
        try:
            record = model.model_validate_json(text, strict=True)
        except ValidationError as error:
            raise ValueError(first_fault(error)) from error
    missing = sorted(set(model.model_fields) - record.model_fields_set - model.OPTIONAL)
    if missing:
        raise damaged(path, what, f"{', '.join(missing)} is missing", command)
    if "fingerprint" in raw and raw["fingerprint"] != fingerprint(record.content()):
        fault = "it does not give its fingerprint, so it was changed or damaged"
        raise damaged(path, what, fault, command)
    if seal is not None and seal != fingerprint(raw):
        fault = "it does not give its seal, so it was changed or damaged"
        raise damaged(path, what, fault, command)
    return record


def _require_version(
    raw: Mapping[str, object], path: Path | str, model: type[Record], what: str, command: str
) -> None:
    """Another kind or format explains every other difference, so it is told first."""
    kind, expected = raw.get("kind"), _literal(model, "kind")
    if isinstance(kind, str) and expected and kind not in expected:
        raise SpgError(f"{path} is of a {shown(kind)}. Expected: {what}. Name another path.")
    version, read = raw.get("format"), _literal(model, "format")
    if version is not None and read and version not in read:
        raise DamagedError(
            f"{path} is of another version: it has format {shown(version)}, and this version of "
            f"spg-pipe reads format {read[0]}. Run `{command}` again with the same options."
        )


def _literal(model: type[Record], name: str) -> tuple[Any, ...]:
    """The values of a field that is a Literal; empty for any other."""
    field = model.model_fields.get(name)
    annotation = field.annotation if field else None
    return get_args(annotation) if getattr(annotation, "__origin__", None) is Literal else ()


def first_fault(error: ValidationError) -> str:
    """The first fault in words: its place in the file, if not the whole, and what is wrong."""
    first = error.errors(include_url=False, include_input=False)[0]
    place, reason = ".".join(str(part) for part in first["loc"]), str(first["msg"])
    return f"{place}{': ' * bool(place)}{reason[:1].lower()}{reason[1:]}"
