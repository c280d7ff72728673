"""Tables of images (CSV): rows with a model, whose faults are named by line and column."""

import csv
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from spg_pipe.artefacts.record import inside
from spg_pipe.datasets.names import composed
from spg_pipe.errors import SpgError

Text = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
"""Without control characters, which no path holds and a terminal obeys."""
PathText = Annotated[Text, AfterValidator(inside)]
SomePath = Annotated[Text, Field(min_length=1), AfterValidator(inside)]
AnyRow = TypeVar("AnyRow", bound=BaseModel)
_DELIMITERS = ",;\t|"


def read_table(
    path: Path, row: type[AnyRow], faults: Mapping[str, str], remedy: str
) -> list[tuple[int, AnyRow]]:
    """The rows of a CSV file (UTF-8) with their lines; other columns than the model's are ignored.

    Parameters
    ----------
    row
        A column without a default must be there; one that is not has the default.
    faults
        Column → what a value of it is that it must not be, as the end of a sentence.
    remedy
        What to do with a damaged file, a sentence without its end.

    An `SpgError` names the line and the column of the first fault.
    """
    fields = row.model_fields
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter=delimiter_of(file.readline()))
            file.seek(0)
            there = [name for name in fields if name in (reader.fieldnames or [])]
            needed = [name for name, field in fields.items() if field.is_required()]
            if missing := [name for name in needed if name not in there]:
                raise SpgError(
                    f"{path} has no column {', '.join(missing)}: expected the header "
                    f"{','.join(needed)}. {remedy}."
                )
            return [
                (reader.line_num, row.model_validate({n: (line[n] or "").strip() for n in there}))
                for line in reader
            ]
    except ValidationError as error:
        fault = error.errors()[0]
        column = str(fault["loc"][0])
        raise SpgError(
            f"{path}, line {reader.line_num}: the {column} {fault['input']!r} {faults[column]}. "
            f"{remedy}, or correct the line."
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise SpgError(f"{path} cannot be read as a CSV file ({error}). {remedy}.") from error


def delimiter_of(header: str) -> str:
    """What stands between the columns of a header: the commonest of , ; tab and |."""
    return max(_DELIMITERS, key=header.count)


def in_form_of(names: Iterable[str]) -> Callable[[str], str]:
    """What finds a name among those on disk, where that may be in another Unicode form."""
    exact = {*names}
    known = {composed(name): name for name in exact}
    return lambda name: name if name in exact else known.get(composed(name), name)
