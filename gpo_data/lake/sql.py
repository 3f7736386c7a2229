"""Small parts of the SQL that the views are made of."""

from __future__ import annotations

from gpo_data.lake.files import Files

DATASET_OF = r"regexp_extract({}, '.*dataset=([^/\\]+)', 1)"  # of a path


def read_parquet(files: Files, patterns: list[str]) -> str:
    # `key=value` folders above the lake would become columns too.
    outer = {part.split("=")[0] for part in files.prefix.split("/") if "=" in part}
    exclude = f" EXCLUDE ({', '.join(map(identifier, sorted(outer)))})" if outer else ""
    if "dataset" in outer:  # of the two the lake's own
        exclude += f", {DATASET_OF.format('filename')} AS dataset"
    return f"""(SELECT *{exclude} FROM read_parquet({listed(patterns)}, union_by_name = true,
                hive_partitioning = true, hive_types = {{'dataset': VARCHAR}}, filename = true))"""


def listed(patterns: list[str]) -> str:
    return f"[{', '.join(map(quote, patterns))}]"


def quote(text: str) -> str:
    """A string of SQL."""
    return "'" + text.replace("'", "''") + "'"


def identifier(text: str) -> str:
    """A name of SQL."""
    return '"' + text.replace('"', '""') + '"'
