"""How object stores and web servers are asked: settings, credentials, and their errors in words."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hashstream.errors import InputError, MissingDependencyError, SettingsError

PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0  # before a request is made again
_LONGEST_S = 240.0  # of a request with all its retries; what signs it may not hold longer


@dataclass(frozen=True)
class RemoteSettings:
    """How object stores are asked.

    Attributes
    ----------
    requests : int
        Most requests at once.
    retries : int
        Times that a request is made again after an error of the server or the connection, after pauses that grow from
        a tenth of a second to ten.
    timeout : float
        Seconds after which a request is given up, and made again.
    """

    requests: int = 16
    retries: int = 8
    timeout: float = 60.0

    def __post_init__(self) -> None:
        for name, least in (("requests", 1), ("retries", 0), ("timeout", 0.1)):
            if getattr(self, name) < least:
                raise SettingsError(
                    f"HASHSTREAM_REMOTE_{name.upper()} is {getattr(self, name)}; expected {least} or more."
                )

    @classmethod
    def from_environment(cls) -> RemoteSettings:
        """From HASHSTREAM_REMOTE_REQUESTS, _RETRIES and _TIMEOUT, where these are set."""
        values: dict[str, Any] = {}
        for name, kind in (("requests", int), ("retries", int), ("timeout", float)):
            variable = f"HASHSTREAM_REMOTE_{name.upper()}"
            text = os.environ.get(variable)
            if text is None:
                continue
            try:
                values[name] = kind(text)
            except ValueError as error:
                raise SettingsError(f"{variable} is {text!r}; expected a number.") from error
        return cls(**values)


def client_for(url: str, settings: RemoteSettings) -> Any:
    """obstore's client for the prefix at a URL; what else it needs to know is in the environment."""
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise MissingDependencyError(
            f"{url}: reading from object stores and web servers needs obstore, which is not installed: pip install "
            '"hashstream[remote]".'
        ) from error
    scheme = urlsplit(url).scheme
    endpoint = (
        os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT")
    )
    plain = scheme == "http" or (scheme == "s3" and (endpoint or "").startswith("http://"))
    pauses = {
        "init_backoff": timedelta(seconds=PAUSE_S),
        "max_backoff": timedelta(seconds=LONGEST_PAUSE_S),
        "base": 6,  # each pause is drawn from the shortest to so many times the last: it doubles as a rule
    }
    options: dict[str, Any] = {
        "client_options": {"timeout": timedelta(seconds=settings.timeout), **({"allow_http": True} if plain else {})},
        "retry_config": {
            "max_retries": settings.retries,
            "retry_timeout": timedelta(seconds=min(_LONGEST_S, (settings.retries + 1) * settings.timeout)),
            "backoff": pauses,
        },
    }
    if scheme == "s3":
        options |= {"endpoint": endpoint} if endpoint else {}
        options |= _profile(url)
    try:
        return from_url(url, **options)
    except Exception as error:
        raise InputError(f"{url}: {in_words(error, url, settings)}") from error


def _profile(url: str) -> dict[str, Any]:
    """Credentials of a profile in the files of the AWS command line, which boto3 can read and obstore cannot."""
    stated = ("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE")
    file = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", Path.home() / ".aws" / "credentials"))
    if any(os.environ.get(name) for name in stated) or not (os.environ.get("AWS_PROFILE") or file.is_file()):
        return {}
    if importlib.util.find_spec("boto3") is None:
        if os.environ.get("AWS_PROFILE"):
            raise MissingDependencyError(
                f"{url}: AWS_PROFILE is set, and profiles are read by boto3, which is not installed: "
                "pip install boto3, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            )
        return {}
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return {"credential_provider": Boto3CredentialProvider()}
    except Exception as error:
        raise InputError(f"{url}: the AWS profile cannot be used ({type(error).__name__}: {error}).") from error


def in_words(error: Exception, url: str, settings: RemoteSettings) -> str:
    """An error of obstore as a sentence with a remedy."""
    text, kind = str(error).partition("\n\nDebug source")[0], type(error).__name__
    credentials = {
        "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), or AWS_SKIP_SIGNATURE=true for a "
        "public bucket",
        "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true for a public bucket",
        "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or "
        "AZURE_SKIP_SIGNATURE=true for a public container",
    }.get(url.partition(":")[0], "the server wants a log-in, which is not supported: download the store")
    said = re.sub(r"\S*\b\w+://\S*", "", text)  # without addresses, in which the words below could be names
    if re.search(r"169\.254\.|metadata\.google|latest/api/token|meta-data/iam", text) or re.search(
        "credential|Account must be", said
    ):
        return f"no credentials found; {credentials}."
    if kind in ("PermissionDeniedError", "UnauthenticatedError") or re.search(r"\b(401|403)\b", said):
        return f"access denied; {credentials}, or ask its owner for the right to read it."
    if re.search("redirect", said, re.IGNORECASE):
        return "the server refers to another place; set AWS_REGION to the region of the bucket."
    if kind == "NotSupportedError" or re.search("non-partial|NotPartial", said, re.IGNORECASE):
        return "the server cannot send parts of a file, which shards need; use another server, or download the store."
    reason = re.sub(r",? *max_retries.*?(?= - |$)", "", said.splitlines()[0] if said else kind).strip()[-300:]
    return (
        f"cannot be read, also when asked again up to {settings.retries} time(s) ({reason}). Check the address and the "
        "connection, and run the command again."
    )
