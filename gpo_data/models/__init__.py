"""Diffusers pipelines behind one small interface, one file a family."""

from gpo_data.models.load import (
    FAMILIES,
    LORA_FILE,
    Conditioning,
    Model,
    adopt,
    digest,
    load,
    policy_folder,
    repeat,
    resolve,
    versions,
)

__all__ = [
    "FAMILIES",
    "LORA_FILE",
    "Conditioning",
    "Model",
    "adopt",
    "digest",
    "load",
    "policy_folder",
    "repeat",
    "resolve",
    "versions",
]
