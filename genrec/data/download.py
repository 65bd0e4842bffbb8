"""Downloads a file to its final name only when it is whole and its checksum is right."""

import hashlib
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from genrec.errors import ConfigError, DataError

TIMEOUT_S = 30.0
_BLOCK_BYTES = 1 << 20


def download(
    url: str,
    target: Path,
    checksum: str,
    *,
    timeout_s: float = TIMEOUT_S,
    progress: Callable[[float], None] | None = None,
) -> Path:
    """`target`, after downloading it from `url` unless it is there already with the right `checksum`.

    `checksum` is `md5:HEX` or `sha256:HEX`. The body goes to a temporary name beside the target, is checked, and only
    then gets its name. `timeout_s` is how long the server may stay silent. `progress` gets the fraction received.
    Raises ConfigError for a checksum or URL of another form, DataError when the file cannot be had.
    """
    parse_checksum(checksum)
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"data.source.url must start with http:// or https://, not {url!r}; correct it.")
    if target.is_file() and file_checksum(target, checksum) == checksum:
        return target
    draft = target.with_name(f"{target.name}.part-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _fetch(url, draft, timeout_s, progress)
            found = file_checksum(draft, checksum)
            if found != checksum:
                raise DataError(
                    f"{url} gave a file with checksum {found}, expected {checksum}; it was deleted. Try again, or set "
                    "data.source.checksum if the publisher changed it."
                )
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"{target} cannot be written ({error}); set data.source.download_dir to another folder."
        ) from error
    return target


def parse_checksum(checksum: str) -> tuple[str, str]:
    """Algorithm and hexadecimal digest; raises ConfigError for another form."""
    algorithm, _, digest = checksum.partition(":")
    lengths = {"md5": 32, "sha256": 64}
    if len(digest) != lengths.get(algorithm) or any(c not in "0123456789abcdef" for c in digest):
        raise ConfigError(
            f"data.source.checksum must be md5: and 32, or sha256: and 64 hexadecimal digits, not {checksum!r}."
        )
    return algorithm, digest


def file_checksum(path: Path, like: str) -> str:
    """The checksum of a file, by the algorithm of `like` and in its form."""
    algorithm, _ = parse_checksum(like)
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def _fetch(url: str, draft: Path, timeout_s: float, progress: Callable[[float], None] | None) -> None:
    by_hand = "download it by hand and set data.source.path to it, or set data.source.url to a mirror"
    request = urllib.request.Request(url, headers={"User-Agent": "genrec"})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            expected = int(response.headers.get("Content-Length") or 0)
            received = 0
            with draft.open("wb") as file:
                while block := response.read(_BLOCK_BYTES):
                    file.write(block)
                    received += len(block)
                    if progress is not None and expected:
                        progress(received / expected)
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        raise DataError(f"{url} answered {error.code} {error.reason}; {by_hand}.") from error
    except urllib.error.URLError as error:
        raise DataError(f"{url} cannot be reached ({error.reason}); {by_hand}.") from error
    except (TimeoutError, ConnectionError, HTTPException) as error:
        raise DataError(f"{url} broke off ({error or type(error).__name__}); try again, or {by_hand}.") from error
    if expected and received != expected:
        raise DataError(f"{url} broke off after {received} of {expected} bytes; try again, or {by_hand}.")
