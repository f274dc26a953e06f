"""Files as rows with line numbers: gzip is opened transparently, a .json file may be one array or JSON lines.

Nothing here knows a format. Damage of one row is a RowError, damage of the whole file a DataError.
"""

from __future__ import annotations

import difflib
import gzip
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any
from weakref import WeakSet

from rankwright.data.fields import Row, object_of, shown
from rankwright.data.problems import OR_SKIP, Problem, RowError
from rankwright.errors import DataError, ResourceNotFoundError, StorageError

AnyPath = Path | zipfile.Path
"""A file on disk or a member of a zip archive; both open, list and join alike."""

_UTF8_MARK = b"\xef\xbb\xbf"
_GZIP_MAGIC = b"\x1f\x8b"
_ZIP_MAGIC = b"PK\x03\x04"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_JSON_MARK = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\n]')
"""Braces and line breaks; strings are matched too, so that a brace inside one is passed over."""
_CONVERT = "Convert the file, for example: iconv -f LATIN1 -t UTF-8 OLD > NEW."


def file_problem(path: object, found: str, wanted: str, next_step: str, line: int = 0) -> DataError:
    """The error for damage that no skipping of rows can heal."""
    return DataError(str(Problem(str(path), line, found, wanted, next_step)))


def lines_of(path: AnyPath) -> Iterator[tuple[int, bytes]]:
    """(line number, bytes without line break) of every line that is not blank.

    Only line feeds end a line: JSON lines may hold any other Unicode separator inside a string.
    """
    with _opened(path) as stream:
        for number, raw in enumerate(stream, start=1):
            line = raw.removeprefix(_UTF8_MARK) if number == 1 else raw
            if line.strip():
                yield number, line.rstrip(b"\r\n")


def text_of(path: AnyPath) -> str:
    """The whole file as text; for formats that are one JSON value."""
    with _opened(path) as stream:
        raw = stream.read().removeprefix(_UTF8_MARK)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise file_problem(path, _bad_byte(raw, error), "UTF-8", _CONVERT, line) from None


def decoded(raw: bytes) -> str:
    """One line as text."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise RowError(_bad_byte(raw, error), "UTF-8", _CONVERT) from None


def parsed_object(line: str) -> Row:
    """One line as a JSON object."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise RowError(
            f"broken JSON, {error.msg} at column {error.colno} of {shown(line)}",
            "one complete JSON object per line, or one JSON array in the whole file",
            f"Correct the line{OR_SKIP}.",
        ) from None
    except (ValueError, RecursionError) as error:
        raise RowError(f"JSON that cannot be read ({error})", "a plain JSON object", "Correct the line.") from None
    return object_of(value, "row")


def is_json_array(path: AnyPath) -> bool:
    """True where the first character that is not blank opens an array. Empty files are an error here."""
    return first_line(path).lstrip().startswith(b"[")


def first_line(path: AnyPath) -> bytes:
    """The first line that is not blank."""
    for _, line in lines_of(path):
        return line
    raise file_problem(path, "the file is empty", "at least one row", "Check the path, or how the file was written.")


def array_rows(path: AnyPath) -> Iterator[tuple[int, Any]]:
    """(line, value) of every element of a file that is one JSON array.

    Elements are decoded one by one, because only so the line where each begins is known.
    """
    text, decoder = text_of(path), json.JSONDecoder()
    position = _skip_blanks(text, text.index("[") + 1)
    line, counted = 1, 0
    while not text.startswith("]", position):
        line += text.count("\n", counted, position)
        counted = position
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise _broken_array(path, text, error) from None
        yield line, value
        position = _skip_blanks(text, end)
        if text.startswith(",", position):
            position = _skip_blanks(text, position + 1)
        elif not text.startswith("]", position):
            raise _broken_array(path, text, json.JSONDecodeError("no ',' or ']' after an element", text, position))
    if _skip_blanks(text, position + 1) != len(text):
        raise _broken_array(path, text, json.JSONDecodeError("text after the closing ']'", text, position + 1))


def parsed_file(path: AnyPath) -> tuple[Any, Mapping[int, int]]:
    """The single JSON value of a file, and the line where each object in it begins, by the id() of the object."""
    first_line(path)
    text = text_of(path)
    begins = _object_lines(text)
    lines: dict[int, int] = {}

    def placed(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        lines[id(found)] = next(begins)
        return found

    try:
        return json.loads(text, object_pairs_hook=placed), lines
    except (ValueError, RecursionError) as error:
        raise _broken_array(path, text, error) from None


def _object_lines(text: str) -> Iterator[int]:
    """The line where each object of a JSON text begins, in the order in which objects end: so a decoder builds them."""
    line, open_lines = 1, list[int]()
    for mark in _JSON_MARK.finditer(text):
        if mark[0] == "\n":
            line += 1
        elif mark[0] == "{":
            open_lines.append(line)
        elif mark[0] == "}":
            yield open_lines.pop()


def write_lines(path: str | Path, lines: Iterable[str]) -> None:
    """Write text lines (UTF-8, gzip where the name ends in .gz) so that a failure leaves an older file untouched."""
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as raw, _packed(raw, target) as stream:
            stream.writelines((line + "\n").encode() for line in lines)
    except OSError as error:
        raise StorageError(
            f"'{target}' cannot be written: {error.strerror or error}. Free space on the disk or choose another path."
        ) from error


def _packed(raw: IO[bytes], target: Path) -> AbstractContextManager[Any]:
    # mtime=0: the same rows give the same bytes
    return gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) if target.suffix == ".gz" else nullcontext(raw)


def replace_text(path: Path, text: str) -> None:
    """Replaces a file's content so that a kill leaves the old or the new, never a part; an OSError where it cannot."""
    with replacing(path) as stream:
        stream.write(text.encode())


_held: WeakSet[IO[Any]] = WeakSet()


def take_lock(stream: IO[Any]) -> bool:
    """Whether nobody else holds a file, which is then held until the stream is closed or the process dies; a forked
    child finds it closed. Where the system has no such locks, or the disk none, nobody looks."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    _held.add(stream)
    return True


def _let_go() -> None:
    """A forked child would hold the file on after its parent was killed: they share what is open."""
    for stream in _held:
        stream.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A stream beside the file, whose content takes the file's place once it is whole and on the disk."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _opened(path: AnyPath) -> Iterator[IO[bytes]]:
    """A binary stream of the file's content, unpacked where it is gzip; damage met while reading gets a name."""
    with _stream(path) as stream:
        head: bytes = stream.peek(4)[:4]  # pyright: ignore[reportAttributeAccessIssue]
        problem = _wrong_kind(head)
        if problem:
            raise file_problem(path, *problem)
        try:
            if head.startswith(_GZIP_MAGIC):
                with gzip.open(stream, "rb") as unpacked:
                    yield unpacked  # pyright: ignore[reportReturnType]
            else:
                yield stream
        except (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile) as error:
            raise file_problem(
                path, f"the compressed file breaks off or is damaged ({error})", "a complete file", "Fetch it again."
            ) from None


def _stream(path: AnyPath) -> IO[bytes]:
    if path.is_dir():
        raise file_problem(path, "a folder", "a file", "Name the file inside the folder.")
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise ResourceNotFoundError(f"'{path}' does not exist; wanted a file. {_closest(path)}") from None
    except OSError as error:
        raise ResourceNotFoundError(
            f"'{path}' cannot be opened: {error.strerror}; wanted a readable file. Check its permissions."
        ) from error


def _wrong_kind(head: bytes) -> tuple[str, str, str] | None:
    if head.startswith(_ZIP_MAGIC):
        return "a zip archive", "a file of rows", "Unpack it and name the file (format beir reads a zip as it is)."
    if head.startswith(_UTF16_MARKS):
        return "a UTF-16 byte order mark", "UTF-8", "Convert the file: iconv -f UTF-16 -t UTF-8 OLD > NEW."
    return None


def _closest(path: AnyPath) -> str:
    """Advice for a path that does not exist."""
    folder = Path(str(path)).parent
    if not folder.is_dir():
        return f"Its folder '{folder}' does not exist either; check the path."
    names = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=1)
    return f"Did you mean '{names[0]}'?" if names else "Check the path."


def _skip_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _bad_byte(raw: bytes, error: UnicodeDecodeError) -> str:
    column = error.start - raw.rfind(b"\n", 0, error.start)
    return f"byte 0x{raw[error.start]:02x} at column {column} is not UTF-8"


def _broken_array(path: object, text: str, error: Exception) -> DataError:
    if not isinstance(error, json.JSONDecodeError):
        return file_problem(path, f"JSON that cannot be read ({error})", "plain JSON", "Write the file again.")
    near = shown(text[max(0, error.pos - 20) : error.pos + 20])
    return file_problem(
        path,
        f"broken JSON, {error.msg} near {near}",
        "one complete JSON value",
        "Correct the file; a broken array cannot be skipped row by row, JSON lines can.",
        error.lineno,
    )
