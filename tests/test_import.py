"""What `import` makes of pictures and rows as people have them: as a viewer shows them, and as each row says."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from gpo_data import cli, recipe
from gpo_data.lake.locks import claim
from gpo_data.lake.record import Record
from gpo_data.lake.shard import sidecars
from gpo_data.lake.sidecar import read_rows
from gpo_data.pictures import decoded, kind_of, shown

COLOR = ["--model", "tiny", "--evaluators", "[color]", "--reward", "color_share"]
ALIGN = ["--task.kind", "align", *COLOR]
COUNT = ["--task.kind", "count", "--task.target_column", "count", *COLOR]
# Upright: red, green above blue, yellow.
CORNERS = np.zeros((64, 64, 3), np.uint8)
CORNERS[:32, :32], CORNERS[:32, 32:], CORNERS[32:, :32], CORNERS[32:, 32:] = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 0),
)


def data_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def array_of(data: bytes) -> np.ndarray:
    return np.asarray(shown(data, kind_of(data) or "none"))


def turned(orientation: int) -> tuple[Image.Image, Image.Exif]:
    """CORNERS as a camera held that way stores it."""
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright, exif = Image.fromarray(CORNERS), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return upright.transpose(stored[orientation]) if orientation in stored else upright, exif


def folder_of(path: Path, files: dict[str, bytes], rows: list[list[Any]] | list[dict[str, Any]]) -> Path:
    """Pictures with metadata.csv (a header and fields) or metadata.jsonl (objects)."""
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
    if isinstance(rows[0], dict):
        (path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with (path / "metadata.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows(rows)
    return path


def imported(recipe_file: Path, source: Path, options: list[str], code: int = 0) -> dict[str, dict[str, Any]]:
    """{imported_from: the member's row} of dataset `mine`."""
    assert cli.main(["import", str(recipe_file), str(source), "--name", "mine", *options]) == code
    there = recipe_file.parent / "lake/dataset=mine"
    return {row["imported_from"]: row for sidecar in sidecars(there) for row in read_rows(sidecar)}


@pytest.fixture
def plain() -> bytes:
    return data_of(Image.fromarray(CORNERS))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_picture_stands_as_its_exif_says(orientation: int, kind: str) -> None:
    image, exif = turned(orientation)
    data = data_of(image, kind, exif=exif, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))
    off = np.abs(array_of(data)[8::16, 8::16].astype(int) - CORNERS[8::16, 8::16])
    assert off.max() < 24
    assert np.array_equal(np.asarray(decoded(data, kind)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_exif_with_a_damaged_tag_still_says_which_side_is_up() -> None:
    image, exif = turned(6)
    exif[ExifTags.Base.Make] = "a camera"
    data = data_of(image, "WEBP", exif=exif, lossless=True)
    damaged = data.replace(b"\x01\x0f\x00\x02", b"\x01\x00\x00\x02")  # a text for tag 0x0100, a width
    assert damaged != data and np.array_equal(array_of(damaged), CORNERS)


def test_what_is_transparent_is_white() -> None:
    red, half = (255, 0, 0), np.zeros((4, 6, 4), np.uint8)
    half[:, :2], half[:, 2:4] = (*red, 255), (*red, 128)  # and the rest transparent black
    rgba = Image.fromarray(half)
    expected = [red, red, (255, 127, 127), (255, 127, 127), (255, 255, 255), (255, 255, 255)]
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        assert array_of(data_of(rgba, kind, **options))[0].tolist() == [list(one) for one in expected], kind
    grey = Image.merge("LA", (Image.new("L", (2, 1), 0), Image.fromarray(np.array([[255, 0]], np.uint8))))
    assert array_of(data_of(grey))[0].tolist() == [[0] * 3, [255] * 3]
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 0, 0, 0, 0, 255])
    assert array_of(data_of(palette, transparency=1))[0].tolist() == [[255, 0, 0], [255, 255, 255], [0, 0, 255]]
    assert array_of(data_of(palette, transparency=bytes([255, 0, 255])))[0, 1].tolist() == [255, 255, 255]
    assert array_of(data_of(palette))[0].tolist() == [[255, 0, 0], [0, 0, 0], [0, 0, 255]]  # opaque black stays
    keyed = data_of(Image.fromarray(np.array([[red, (0, 0, 0)]], np.uint8)), transparency=(0, 0, 0))
    assert array_of(keyed)[0].tolist() == [[255, 0, 0], [255, 255, 255]]


def test_grey_of_sixteen_bits_keeps_its_shades() -> None:
    values = np.array([[0, 128, 129, 257, 25_700, 32_768, 65_535]], np.uint16)
    data = data_of(Image.fromarray(values))
    assert Image.open(io.BytesIO(data)).mode.startswith("I")
    assert array_of(data)[0].tolist() == [[v] * 3 for v in (0, 0, 1, 1, 100, 128, 255)]
    clear = array_of(data_of(Image.fromarray(values), transparency=257))
    assert clear[0, :, 0].tolist() == [0, 0, 1, 255, 100, 128, 255]


def test_the_lake_holds_them_as_a_viewer_shows_them(recipe_file: Path, tmp_path: Path) -> None:
    phone, exif = turned(6)
    see_through = np.dstack([CORNERS, np.full((64, 64), 255, np.uint8)])
    see_through[:32, :32] = 0
    files = {
        "phone.png": data_of(phone, exif=exif),
        "logo.png": data_of(Image.fromarray(see_through)),
        "scan.png": data_of(Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16))),
    }
    source = folder_of(tmp_path / "mine", files, [["file_name", "caption"], *([name, name] for name in files)])
    found = imported(recipe_file, source, ALIGN)
    there = recipe_file.parent / "lake/dataset=mine"
    stored = {name: Record.of(row, there).group().images[0] for name, row in found.items()}
    assert np.array_equal(stored["phone.png"], CORNERS)
    on_white = CORNERS.copy()
    on_white[:32, :32] = 255
    assert np.array_equal(stored["logo.png"], on_white)
    assert abs(float(np.mean(stored["scan.png"])) - 127.5) < 1 and np.ptp(stored["scan.png"]) == 255
    assert cli.main(["verify", str(recipe_file), "--name", "mine", *ALIGN]) == 0


def test_each_row_says_whether_its_target_is_in_a_column(
    recipe_file: Path, tmp_path: Path, plain: bytes, capsys: Any
) -> None:
    rows = [
        ["file_name", "caption", "count", "class", "rating"],
        ["a.png", "two circles", "", "circle", "1"],
        ["b.png", "three circles", "5", "circle", "high"],
        ["c.png", "four squares", "", "", "2.5"],
    ]
    source = folder_of(tmp_path / "mine", dict.fromkeys(["a.png", "b.png", "c.png"], plain), rows)
    found = imported(recipe_file, source, COUNT)
    columns = ("target_count", "target_class", "rating")
    said = {name: tuple(row[column] for column in columns) for name, row in found.items()}
    assert said == {"a.png": (2, "circle", "1"), "b.png": (5, "circle", "high"), "c.png": (4, "square", "2.5")}

    def refused(*changed: list[Any]) -> str:
        with (source / "metadata.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([rows[0], *changed])
        assert cli.main(["import", str(recipe_file), str(source), "--name", "none", *COUNT]) == 2
        assert not (recipe_file.parent / "lake/dataset=none").exists()
        return capsys.readouterr().err

    assert "mine, a.png: no 'count', and class says 'square' where the caption says 'circle'" in refused(
        ["a.png", "two circles", "", "square", "1"], *rows[2:]
    )
    assert "found 5 of b.png and 6 of c.png; give them captions of their own" in refused(
        rows[1], rows[2], ["c.png", "three circles", "6", "circle", ""]
    )
    assert "mine, c.png: several things are counted" in refused(
        *rows[1:3], ["c.png", "two dogs and three cats", "", "", ""]
    )


def test_numbers_of_read_and_of_counted_captions_are_one_column(
    recipe_file: Path, tmp_path: Path, plain: bytes
) -> None:
    rows: list[dict[str, Any]] = [
        {"file_name": "a.png", "caption": "two circles", "score": 1, "tags": ["x"]},
        {"file_name": "b.png", "caption": "three circles", "count": 5, "class": "circle", "score": 0.5, "tags": None},
    ]
    found = imported(recipe_file, folder_of(tmp_path / "mine", {"a.png": plain, "b.png": plain}, rows), COUNT)
    assert [found[name]["score"] for name in ("a.png", "b.png")] == [1.0, 0.5]
    assert [found[name]["tags"] for name in ("a.png", "b.png")] == ['["x"]', None]


GENEVAL = {
    "tag": "position",
    "prompt": "a photo of a tie above a sink",
    "include": [{"class": "sink", "count": 1}, {"class": "tie", "count": 1, "position": ["above", 0]}],
    "exclude": [{"class": "tie", "count": 2}],
}


def test_a_row_of_geneval_is_taken_at_its_word(recipe_file: Path, tmp_path: Path, plain: bytes, capsys: Any) -> None:
    """From metadata.jsonl and a tar; a row without clauses beside it is understood from its caption."""
    rows: list[dict[str, Any]] = [
        GENEVAL | {"file_name": "a.png"},
        {"file_name": "b.png", "prompt": "a photo of two dogs and one kite"},
    ]
    options = ["--task.kind", "compose", *COLOR]
    source = folder_of(tmp_path / "mine", {"a.png": plain, "b.png": plain}, rows)
    found = imported(recipe_file, source, options)
    assert json.loads(found["a.png"]["include"]) == GENEVAL["include"]
    assert json.loads(found["a.png"]["exclude"]) == GENEVAL["exclude"] and found["a.png"]["tag"] == "position"
    assert json.loads(found["b.png"]["include"]) == [{"class": "dog", "count": 2}, {"class": "kite", "count": 1}]
    with tarfile.open(tmp_path / "mine.tar", "w") as archive:
        for name, data in (("0.png", plain), ("0.json", json.dumps(GENEVAL).encode())):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    again = ["--lake", str(tmp_path / "other"), *options]
    assert cli.main(["import", str(recipe_file), str(tmp_path / "mine.tar"), "--name", "mine", *again]) == 0
    (row,) = [row for sidecar in sidecars(tmp_path / "other/dataset=mine") for row in read_rows(sidecar)]
    assert json.loads(row["include"]) == GENEVAL["include"] and json.loads(row["exclude"]) == GENEVAL["exclude"]
    rows[0]["include"] = [{"class": "tie", "count": 1, "position": ["above", 3]}]
    (source / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    capsys.readouterr()
    assert cli.main(["import", str(recipe_file), str(source), "--name", "none", *options]) == 2
    assert "mine, a.png: include: 0.position: expected the index of an earlier clause" in capsys.readouterr().err


def test_columns_travel_and_what_is_skipped_is_told(
    recipe_file: Path, tmp_path: Path, plain: bytes, capsys: Any
) -> None:
    files = {"a.png": plain, "c.bmp": b"BM", "d.GIF": b"GIF89a", "notes.md": b"mine"}
    rows = [["file_name", "caption", "category"], ["a.png", "a", "x"], ["gone.png", "b", "y"], ["c.bmp", "c", "z"]]
    source = folder_of(tmp_path / "mine", files, rows)
    found = imported(recipe_file, source, ALIGN)
    assert list(found) == ["a.png"] and found["a.png"]["category"] == "x"
    said = capsys.readouterr().out
    assert f"warning: import {source}: skipped 1 rows of metadata whose file is not there: 'gone.png'" in said
    assert "skipped 2 files that are not .png, .jpg, .jpeg, .webp: 'c.bmp', 'd.GIF'" in said and "notes" not in said
    with tarfile.open(tmp_path / "mine.tar", "w") as archive:
        for name, data in (("0.png", plain), ("0.txt", b"a"), ("1.bmp", b"BM"), ("1.txt", b"b")):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    assert cli.main(["import", str(recipe_file), str(tmp_path / "mine.tar"), "--name", "tar", *ALIGN]) == 0
    assert "skipped 1 samples without .png, .jpg, .jpeg, .webp: 'mine.tar/1'" in capsys.readouterr().out


def test_a_row_without_its_picture_is_a_member_that_failed(
    recipe_file: Path, tmp_path: Path, plain: bytes, capsys: Any
) -> None:
    table = {"caption": ["a"] * 5 + ["b"], "image": [plain] * 5 + [None]}
    pq.write_table(pa.table(table), tmp_path / "null.parquet")
    found = imported(recipe_file, tmp_path / "null.parquet", ALIGN)
    assert [name for name, row in found.items() if row["status"] != "ok"] == ["null.parquet:5"]
    reason = found["null.parquet:5"]["status_reason"]
    assert reason == "import: null.parquet:5: expected a picture's bytes, found none"
    assert "imported 6 pictures in 2 groups; 1 failed" in capsys.readouterr().out
    assert cli.main(["verify", str(recipe_file), "--name", "mine", *ALIGN]) == 0
    # Where no row can have one it is the source that is wrong, and nothing is made.
    pq.write_table(pa.table({"caption": ["a"], "image": ["a.png"]}), tmp_path / "paths.parquet")
    assert cli.main(["import", str(recipe_file), str(tmp_path / "paths.parquet"), "--name", "none", *ALIGN]) == 2
    assert "expected a column with pictures as bytes" in capsys.readouterr().err


def test_what_another_process_imports_is_not_counted(
    recipe_file: Path, tmp_path: Path, plain: bytes, capsys: Any
) -> None:
    source = folder_of(tmp_path / "mine", {"a.png": plain}, [{"file_name": "a.png", "caption": "a"}])
    asked = ["import", str(recipe_file), str(source), "--name", "held", *ALIGN]
    folder = Path(recipe.load(recipe_file).lake) / "dataset=held"
    with claim(folder, 0) as mine:
        assert mine and cli.main(asked) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "imported 0 pictures in 0 groups" in said and "1 shards are imported by another process; run again" in said
    assert cli.main(asked) == 0 and "imported 1 pictures in 1 groups" in " ".join(capsys.readouterr().out.split())


def test_what_cannot_be_encoded_is_told(recipe_file: Path, tmp_path: Path, plain: bytes, capsys: Any) -> None:
    source = folder_of(tmp_path / "mine", {"a.png": plain, "b.png": plain}, [{"file_name": "a.png", "caption": "a"}])

    def refused(source: Path, *rows: str, options: list[str] = ALIGN) -> str:
        if rows:
            (source / "metadata.jsonl").write_text("".join(f"{row}\n" for row in rows))
        assert cli.main(["import", str(recipe_file), str(source), "--name", "none", *options]) == 2
        assert not (recipe_file.parent / "lake/dataset=none").exists()
        return capsys.readouterr().err

    good = '{"file_name": "a.png", "caption": "a"}'
    told = refused(source, good, r'{"file_name": "b.png", "caption": "bad \ud83d char"}')
    assert f"{source}/metadata.jsonl:2: caption: character 5 is half of a surrogate pair" in told
    told = refused(source, good, r'{"file_name": "b.png", "caption": "b", "author": "\ud83d"}')
    assert "metadata.jsonl:2: author: character 1 is half of a surrogate pair" in told
    told = refused(source, good, r'{"file_name": "b.png", "caption": "b", "tags": ["\ud83d"]}')
    assert "mine, b.png: tags: character" in told
    clause = r'{"file_name": "b.png", "caption": "b", "include": [{"class": "\ud83d", "count": 1}]}'
    clauses = '{"file_name": "a.png", "caption": "one dog"}'
    assert "mine, b.png: include" in refused(source, clauses, clause, options=["--task.kind", "compose", *COLOR])
    with tarfile.open(tmp_path / "mine.tar", "w") as archive:
        for name, data in (("0.png", plain), ("0.json", rb'{"caption": "\ud83d"}')):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    assert "mine.tar/0.json: caption: character 1" in refused(tmp_path / "mine.tar")
    odd = os.fsencode(source) + b"/caf\xe9"
    for ending, data in ((b".png", plain), (b".txt", b"a")):
        Path(os.fsdecode(odd + ending)).write_bytes(data)
    assert r"expected file names in UTF-8, found 'caf\udce9.png'; rename it" in refused(
        source, good, good.replace("a.png", "b.png")
    )
