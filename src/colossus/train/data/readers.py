"""Documents out of files, streamed: memory is bounded by one chunk, or by the longest record of a .jsonl or .parquet."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from colossus.spec.errors import DataError, nearest
from colossus.train.data.sources import TextFile, text_kind

CHUNK_BYTES = 2**18
ROWS_PER_BATCH = 64


@dataclass
class Meter:
    """How far reading has come: bytes of the files on disk, and documents begun."""

    num_bytes: int = 0
    num_documents: int = 0


@dataclass(frozen=True)
class Piece:
    """A stretch of text; ``begins`` marks the first of a document."""

    text: str
    begins: bool


def read_pieces(files: Iterable[TextFile], text_field: str, meter: Meter) -> Iterator[Piece]:
    """The text of every file in order. A plain text file is one document, a record of .jsonl or .parquet another."""
    for file in files:
        try:
            for piece in _read(file, text_field, meter):
                meter.num_documents += piece.begins
                yield piece
        except OSError as error:
            raise DataError(f"cannot read {file.name}: {error.strerror or error}", hint="repair it or leave it out of data.sources") from None


def _read(file: TextFile, text_field: str, meter: Meter) -> Iterator[Piece]:
    kind = text_kind(file.path)
    if kind == ".parquet":
        return _parquet(file, text_field, meter)
    chunks = _chunks(file, meter)
    return _records(file.name, chunks, text_field) if kind == ".jsonl" else _text(file.name, chunks)


def _text(name: str, chunks: Iterator[bytes]) -> Iterator[Piece]:
    """One document, decoded as it comes; line ends are kept as they are, a byte order mark is not."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    num_lines, begins = 0, True
    for chunk, last in _mark_last(chunks):
        try:
            text = decoder.decode(chunk, last)
        except UnicodeDecodeError as error:
            raise _not_utf8(name, num_lines + error.object[: error.start].count(b"\n") + 1, error) from None
        num_lines += chunk.count(b"\n")
        if text:
            yield Piece(text, begins)
            begins = False


def _not_utf8(place: str, line: int, error: UnicodeDecodeError) -> DataError:
    byte = error.object[error.start]
    return DataError(f"{place}:{line}: byte 0x{byte:02x} is not UTF-8", hint="convert the file (iconv -f latin1 -t utf-8) or leave it out of data.sources")


def _records(name: str, chunks: Iterator[bytes], text_field: str) -> Iterator[Piece]:
    """One document a line; blank lines and empty texts hold none."""
    for number, line in enumerate(_lines(chunks), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except UnicodeDecodeError as error:
            raise _not_utf8(name, number, error) from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}:{number}: not a line of JSON: {error}", hint="each line of a .jsonl file is one JSON object") from None
        if text := _field(record, text_field, f"{name}:{number}"):
            yield Piece(text, True)


def _field(record: Any, text_field: str, place: str) -> str:
    if not isinstance(record, dict):
        raise DataError(f"{place}: a JSON {type(record).__name__}, not an object", hint=f'write {{"{text_field}": "..."}}')
    if text_field not in record:
        raise DataError(f"{place}: no field {text_field!r} (data.text_field)", hint=nearest(text_field, record) or "set data.text_field")
    text = record[text_field]
    if not isinstance(text, str):
        raise DataError(f"{place}: field {text_field!r} is {type(text).__name__}, not text", hint="set data.text_field to the field that holds the text")
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: \\u{ord(text[error.start]):04x} is half a surrogate pair, no character", hint="mend the escape or drop the line") from None
    return text


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    pending: list[bytes] = []
    for chunk in chunks:
        head, *rest = chunk.split(b"\n")
        pending.append(head)
        if rest:
            yield b"".join(pending)
            yield from rest[:-1]
            pending = [rest[-1]]
    yield b"".join(pending)


def _mark_last(chunks: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
    previous = b""
    for chunk in chunks:
        if previous:
            yield previous, False
        previous = chunk
    yield previous, True


def _chunks(file: TextFile, meter: Meter) -> Iterator[bytes]:
    """The bytes of a file, decompressed by its suffix; damage is told from the end of the file."""
    with file.path.open("rb") as raw:
        reader = {".gz": _gzip_chunks, ".zst": _zstd_chunks}.get(file.path.suffix.lower(), _plain_chunks)
        before = meter.num_bytes
        for chunk in reader(file.name, raw):
            meter.num_bytes = before + raw.tell()
            yield chunk


def _plain_chunks(name: str, raw: BinaryIO) -> Iterator[bytes]:
    while chunk := raw.read(CHUNK_BYTES):
        yield chunk


def _gzip_chunks(name: str, raw: BinaryIO) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=raw) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise _damaged(name, "gzip", error) from None


def _zstd_chunks(name: str, raw: BinaryIO) -> Iterator[bytes]:
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame, rest = None, b""
    try:
        while rest or (rest := raw.read(CHUNK_BYTES // 4)):
            frame = frame or decompressor.decompressobj()
            yield frame.decompress(rest)
            rest = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise _damaged(name, "zstd", error) from None
    if frame is not None:
        raise _damaged(name, "zstd", "it ends in the middle of a frame")


def _damaged(name: str, form: str, why: object) -> DataError:
    return DataError(f"{name}: damaged {form} data: {why}", hint=f"fetch the file again; test it with: {'gzip' if form == 'gzip' else 'zstd'} -t")


def _parquet(file: TextFile, text_field: str, meter: Meter) -> Iterator[Piece]:
    """One document a row; a row group's column is read in batches."""
    table = _open_parquet(file.path, file.name)
    if text_field not in table.schema_arrow.names:
        hint = nearest(text_field, table.schema_arrow.names) or "set data.text_field"
        raise DataError(f"{file.name}: no column {text_field!r} (data.text_field)", hint=hint)
    before, row, num_rows = meter.num_bytes, 0, max(1, table.metadata.num_rows)
    for texts in _parquet_batches(table, text_field, file.name):
        for text in texts:
            row += 1
            if not isinstance(text, str):
                what = "null" if text is None else type(text).__name__
                raise DataError(f"{file.name}: row {row} of column {text_field!r} is {what}, not text", hint="drop such rows or set data.text_field")
            if text:
                yield Piece(text, True)
        meter.num_bytes = before + file.size_bytes * row // num_rows


def _open_parquet(path: Path, name: str) -> Any:
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError:
        raise DataError(f"{name}: reading .parquet needs pyarrow, which is not installed", hint="pip install 'colossus[parquet]'") from None
    try:
        return parquet.ParquetFile(path)
    except arrow.ArrowException as error:
        raise _not_parquet(name, error) from None


def _parquet_batches(table: Any, text_field: str, name: str) -> Iterator[list[Any]]:
    try:
        for batch in table.iter_batches(batch_size=ROWS_PER_BATCH, columns=[text_field], use_threads=False):
            yield batch.column(0).to_pylist()
    except (import_module("pyarrow").ArrowException, UnicodeDecodeError) as error:
        raise _not_parquet(name, error) from None
    finally:
        table.close()


def _not_parquet(name: str, error: Exception) -> DataError:
    return DataError(f"{name}: not a readable .parquet file: {error}", hint="fetch the file again, or leave it out of data.sources")
