"""Diffusers pipelines behind one small interface, one file a family."""

from gpo_data.models.digests import digest, digests_of, files_digest, weights_digest
from gpo_data.models.load import (
    ARITHMETIC,
    FAMILIES,
    LORA_FILE,
    WHOLE,
    Conditioning,
    Model,
    expect_size,
    expect_unconditional,
    load,
    load_policy_weights,
    lora_of,
    policy_path,
    repeat,
    resolve,
    told,
    versions,
)

__all__ = [
    "ARITHMETIC",
    "FAMILIES",
    "LORA_FILE",
    "WHOLE",
    "Conditioning",
    "Model",
    "digest",
    "digests_of",
    "expect_size",
    "expect_unconditional",
    "files_digest",
    "load",
    "load_policy_weights",
    "lora_of",
    "policy_path",
    "repeat",
    "resolve",
    "told",
    "versions",
    "weights_digest",
]
