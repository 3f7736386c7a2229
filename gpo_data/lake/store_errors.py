"""What an object store refuses, as one line: what it said, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from gpo_data.errors import RunError, StoreError, UsageError

EXPIRED = ("ExpiredToken", "RequestExpired", "TokenRefreshRequired", "InvalidToken", "ExpiredTokenException")
UNKNOWN = (
    *("InvalidAccessKeyId", "SignatureDoesNotMatch", "NoCredentialsError", "PartialCredentialsError"),
    *("AuthenticationFailed", "AuthorizationFailure", "InvalidAuthenticationInfo"),  # Azure's
)
NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
DENIED = ("AuthorizationPermissionMismatch", "InsufficientAccountPermissions")  # where it is no PermissionError
CLOCKS = ("RequestTimeTooSkewed",)
LOST_UPLOAD = ("NoSuchUpload",)  # one in parts, which somebody aborted, or completed: its answer was lost
# Of what must not replace an object. Not every store says `If-None-Match` with it, which s3fs looks for.
TAKEN = ("PreconditionFailed", "412", "ConditionalRequestConflict", *LOST_UPLOAD)
CREDENTIALS = (
    "the environment or the store's own files give them (AWS_PROFILE, AZURE_STORAGE_CONNECTION_STRING, "
    "GOOGLE_APPLICATION_CREDENTIALS, ...)"
)


@contextmanager
def explaining(url: str, writing: bool = False) -> Iterator[None]:
    """Inside, what a store cannot do becomes a UsageError or RunError of one line."""
    try:
        yield
    except Exception as error:  # each store has errors of its own
        told = explained(error, url, writing)
        if told is error:
            raise
        raise told from None


def explained(error: Exception, url: str, writing: bool = False) -> Exception:
    """The error to raise in the place of a store's own; FileNotFoundError of an object stays as it is."""
    if isinstance(error, (UsageError, RunError)):
        return error
    code, words = _code(error), " ".join(str(error).split())[:300]
    bucket = "/".join(url.split("/")[:3])
    if lacks_bucket(error):
        return UsageError(f"lake: {url}: no bucket {bucket}; make it, or name another lake:")
    if isinstance(error, FileNotFoundError) and code not in LOST_UPLOAD:
        return error
    if code in EXPIRED:
        return StoreError(f"{url}: the credentials have expired; renew them and run the same command again, it goes on")
    if code in UNKNOWN:
        return UsageError(f"lake: {url}: no credentials that {bucket} knows ({code}); {CREDENTIALS}")
    if code in CLOCKS:
        return UsageError(f"lake: {url}: the clocks of this machine and the store differ too much; set this one's")
    if isinstance(error, PermissionError) or code in DENIED:
        what = "written" if writing else "read"
        return UsageError(f"lake: {url}: must not be {what} with these credentials ({words}); {CREDENTIALS}")
    return StoreError(
        f"{url}: the store does not answer as it should: {type(error).__name__}: {words}; what is committed stays; "
        f"run the same command again, it goes on where it stopped"
    )


def lacks_bucket(error: BaseException) -> bool:
    told = str(error)  # gcsfs tells the address that it listed, and of a bucket that is there, no objects
    return _code(error) in NO_BUCKET or "bucket does not exist" in told or bool(re.fullmatch(r"b/[^/]+/o", told))


def is_taken(error: BaseException) -> bool:
    """Whether an object that should be new may be there already: another's, or our own, put by the first try."""
    return isinstance(error, FileExistsError) or _code(error) in TAKEN


def is_wordless(error: BaseException) -> bool:
    """Of a HEAD, whose answer has a number alone: another question is told what is wrong."""
    return _code(error) in ("400", "403")


def _code(error: BaseException | None) -> str:
    """The store's own name of what is wrong."""
    while error is not None:
        if isinstance(code := getattr(error, "error_code", None), str):  # Azure's, an enumeration of texts
            return str(getattr(code, "value", code))
        response = getattr(error, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return str(response["Error"].get("Code", ""))
        if type(error).__module__.startswith("botocore") and error.__cause__ is None:
            return type(error).__name__
        error = error.__cause__
    return ""
