"""The lines of a file that lists samples, in JSON lines, CSV or Parquet: where each is, and what it says."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from typing import Any, Iterator

DELIMITERS = ",;\t"  # spreadsheets write what their country does


def decode(content: bytes, where: str) -> str:
    try:
        # Excel puts three bytes in front of UTF-8, which would become a part of the first column's name.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 text ({error}): save it as UTF-8") from error


def read_json_lines(content: bytes, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # not splitlines, which splits at characters that JSON may hold
    for number, line in enumerate(decode(content, where).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{where}, line {number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{place} is not valid JSON ({error})") from error
        if not isinstance(values, dict):
            raise ValueError(f"{place} must be a JSON object such as {{...}}, not {type(values).__name__}")
        yield place, values


def delimiter_of(text: str) -> str:
    """What stands between the columns' names in the first line."""
    header = (text.splitlines() or [""])[0]
    columns = {delimiter: len(next(csv.reader([header], delimiter=delimiter))) for delimiter in DELIMITERS}
    return next((delimiter for delimiter, count in columns.items() if count > 1), ",")


def read_csv(content: bytes, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Spaces around names and values count for nothing."""
    text = decode(content, where)
    delimiter = delimiter_of(text)
    # strict: else a quote that is never closed swallows all lines after it
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for values in reader:
            place = f"{where}, line {reader.line_num}"
            if None in values or None in values.values():
                raise ValueError(
                    f'{place} has not as many fields as the first: "quote" a text that has {delimiter!r} in it'
                )
            yield place, {name.strip(): value.strip() for name, value in values.items()}
    except csv.Error as error:
        # `line_num` is that of the last good one: the next is where a quote was opened
        raise ValueError(f"{where}, line {reader.line_num + 1} is not valid CSV ({error})") from error


def read_parquet(content: bytes, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet  # comes with `datasets`, and few need it

    try:
        rows = pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    except Exception as error:  # the library's errors have no common base class
        raise ValueError(f"{where} cannot be read as Parquet ({error}): write it again") from error
    for number, values in enumerate(rows, start=1):
        yield f"{where}, row {number}", values


def reader_for(listing: str) -> Any:
    """The one of the functions above that reads a file of this name."""
    readers = {".csv": read_csv, ".parquet": read_parquet}
    return readers.get(posixpath.splitext(listing)[1].lower(), read_json_lines)
