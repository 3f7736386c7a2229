"""What became of a member: a code out of four, which code reads, and a reason in words, which people read.

    ok                 drawn, measured, and its reward is a finite number; no reason
    failed_latents     the model drew latents that are not finite; there is no picture
    failed_evaluator   an evaluator raised
    failed_reward      measured, but the reward is NULL or not finite: another reward may score it

Lakes of 0.1 have the two in one text, `ok` or `failed: <words>`; `split` and `sql_split` read it.
"""

from __future__ import annotations

OK = "ok"
FAILED_LATENTS = "failed_latents"
FAILED_EVALUATOR = "failed_evaluator"
FAILED_REWARD = "failed_reward"
CODES = (OK, FAILED_LATENTS, FAILED_EVALUATOR, FAILED_REWARD)

REWARD_REASON = "the reward is not a finite number"
LATENTS_REASON = "the model drew latents that are not finite"

OLD = "failed: "
# How the words of 0.1 began, by code; whatever else follows `failed: ` an evaluator raised.
_BEGAN = {FAILED_LATENTS: f"{OLD}the model drew latents", FAILED_REWARD: f"{OLD}the reward is not"}


def split(status: str, reason: str | None = None) -> tuple[str, str | None]:
    """(code, reason) of a stored status, whichever version wrote it."""
    if status in CODES:
        return status, reason
    code = next((code for code, words in _BEGAN.items() if status.startswith(words)), FAILED_EVALUATOR)
    return code, status.removeprefix(OLD)


def sql_split(status: str, reason: str) -> tuple[str, str]:
    """`split` in SQL: expressions of the code and the reason, of expressions of both as stored."""
    listed = ", ".join(f"'{code}'" for code in CODES)
    began = " ".join(f"WHEN starts_with({status}, '{words}') THEN '{code}'" for code, words in _BEGAN.items())
    return (
        f"CASE WHEN {status} IN ({listed}) THEN {status} {began} ELSE '{FAILED_EVALUATOR}' END",
        f"CASE WHEN {status} IN ({listed}) THEN {reason} ELSE regexp_replace({status}, '^{OLD}', '') END",
    )
