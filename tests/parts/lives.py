"""Processes to kill: each is a fork of a server that has the heavy imports done, so that most of a life is drawing."""

from __future__ import annotations

import multiprocessing

PRELOAD = [
    "torch",
    "diffusers",
    "transformers",
    "paddleocr",
    "onnxruntime",
    "gpo_data.generation.generate",
    "gpo_data.models.sd3",
]


def lives() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context
