"""A model's licence, as its card says."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard


def licence_of(model: str) -> str | None:
    """Of `tiny`, a folder with a README.md, or a hub id. None where no card can be read, or it names none."""
    if model == "tiny":
        return "apache-2.0"  # gpo_data/tiny/weights/README.md
    folder = Path(model).expanduser()
    if folder.is_dir() and not (folder / "README.md").is_file():
        return None
    try:
        card = ModelCard.load(folder / "README.md" if folder.is_dir() else model, ignore_metadata_errors=True)
    except Exception:  # the hub's client raises many kinds, and a card may be anything
        return None
    found = card.data.get("license_name") or card.data.get("license")
    return str(found) if found else None


def licence_in_words(model: str) -> str:
    """To stand after "its licence"."""
    found = licence_of(model)
    return f", `{found}`," if found else ""
