"""bench/gpu.py's figures as one table."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def show(found: dict[str, Any]) -> None:
    card = found["card"]
    versions = ", ".join(f"{name} {card[name]}" for name in ("torch", "diffusers", "cuda"))
    sheet = f", data sheet {card['data_sheet_tflops']}" if card["data_sheet_tflops"] else ""
    table = Table(
        title=f"{found['architecture']} on {card['name']}: {versions}",
        caption=f"bf16 matmul {card['matmul_tflops']:.3g} TFLOP/s{sheet}",
    )
    for name in ("px", "part", "what", "rate", "peak memory", "against plain"):
        table.add_column(name, justify="left" if name in ("part", "what") else "right")
    for size, parts in found["sizes"].items():
        _drawing(table, size, parts["drawing"], parts["iteration"])
        _steps(table, parts["step"])
        _iteration(table, parts["iteration"])
    Console(width=max(130, Console().width)).print(table)


def _drawing(table: Table, size: str, one: dict[str, Any], iteration: dict[str, Any]) -> None:
    plain = one["best_plain"]
    table.add_row(size, "drawing", f"plain pipeline, batch {one['batch_plain']}", f"{plain:.3g} images/s")
    for what, rate in (
        (f"ours, batch {one['batch']}", one["best_ours"]),
        ("ours with OCR and writing (the iteration's)", iteration["images_per_s"]),
    ):
        table.add_row("", "", what, f"{rate:.3g} images/s", "", f"x {rate / plain:.2f}")
    shares = [f"{100 * one['share_of_matmul']:.1f}% of matmul"]
    if one["share_of_data_sheet"]:
        shares.append(f"{100 * one['share_of_data_sheet']:.1f}% of data sheet")
    table.add_row("", "", f"{one['tflop_per_image']:.3g} TFLOP an image", ", ".join(shares), end_section=True)


def _steps(table: Table, step: dict[str, dict[str, Any]]) -> None:
    for tuning, variants in step.items():
        plain = variants["plain loop, second copy"]
        for name, value in variants.items():
            if "failed" in value:
                table.add_row("", f"step, {tuning}", name, value["failed"])
                continue
            memory, against = "", ""
            if "failed" not in plain and value is not plain:
                against = f"x {value['samples_per_s'] / plain['samples_per_s']:.2f}"
            if value["peak_gb"] is not None:  # a CUDA device
                memory = f"{value['peak_gb']:.1f} GB"
                against += f", memory x {value['peak_gb'] / plain['peak_gb']:.2f}" if against else ""
            table.add_row("", f"step, {tuning}", name, f"{value['samples_per_s']:.3g} samples/s", memory, against)
    table.add_section()


def _iteration(table: Table, one: dict[str, Any]) -> None:
    for name, value in (one["seconds"] | {"waiting": one["waiting"]}).items():
        table.add_row("", "iteration", name, f"{value:.2f} s", "", f"{100 * value / one['total']:.1f}% of it")
    table.add_section()
