"""Remote shards (``https://``, ``s3://``, ``gs://`` ... through fsspec): where they are, and how one is fetched.

A copy belongs to an address and to what the server says of the file (size, ETag or time), so a changed file is
fetched again, and one that changes while a run reads it is noticed. A copy serves when the server cannot be
reached. Which copies are kept, and where, is ``copies.py``.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hetcl.errors import InputError

log = logging.getLogger(__name__)

PAUSES = (1.0, 4.0)
"""Seconds to wait before each further try of a transfer that failed."""

_MARKS = (
    "ETag", "etag", "md5Hash", "Content-MD5", "LastModified", "Last-Modified", "last_modified", "mtime", "updated",
    "created",
)  # fmt: skip
_FOLDERS = 100
"""Folders of a remote folder in which shards are looked for."""
_ASKING = 16
"""Servers are asked about that many files at a time."""


class TransferError(Exception):
    """A file that could not be fetched; the message names it and the reason."""


@dataclass(frozen=True)
class Shard:
    """A tar shard: a local file, or an address and the state in which the server had it."""

    path: str
    """The local file, or the place of a lasting copy."""
    url: str = ""
    """The address; empty for a local file."""
    size: int = 0
    """Bytes of a remote shard; 0 where the server does not say."""

    @property
    def name(self) -> str:
        """What distinguishes a remote shard from all others: a hash of the address and one of the state."""
        home, state = Path(self.path).parts[-3:-1]
        return f"{home}-{state}"


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of ``url``, and the path in it. Raises InputError when a package is missing.

    Not to be kept: one made before a fork does not work after it.
    """
    import fsspec

    options: dict[str, Any] = {}
    try:
        if url.startswith(("http://", "https://")):
            import aiohttp

            # fsspec's default gives up after five minutes, which a large shard may need.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=120)
            options["client_kwargs"] = {"trust_env": True, "timeout": timeout}
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise InputError(
            f"{url} needs another package ({error}): install it, or copy the shards to a local folder"
        ) from error
    except ValueError as error:
        raise InputError(f"{url}: {error}; DATA is a folder, tar shards or scenes:N") from error


def list_shards(url: str) -> list[str]:
    """Addresses of the ``.tar`` files right below a remote folder, or else in its folders, sorted."""
    system, path = file_system(url)
    try:
        listed = system.ls(path, detail=True)
        names = [entry["name"] for entry in listed]
        if not any(name.endswith(".tar") for name in names):
            folders = [entry["name"] for entry in listed if entry.get("type") == "directory"]
            names = [name for folder in folders[:_FOLDERS] for name in system.ls(folder, detail=False)]
    except Exception as error:  # each file system has its own
        raise InputError(
            f"cannot list {url} ({reason_of(error)}): check the address, or name the shards"
        ) from error
    found = sorted(name for name in names if name.endswith(".tar"))
    if not found:
        raise InputError(f"no .tar shards in {url}: remote images are read from tar shards")
    return [system.unstrip_protocol(name) for name in found]


def fetch_text(url: str) -> bytes | None:
    """A small file beside the shards, or None when there is none."""
    with contextlib.suppress(InputError):
        system, path = file_system(url)
        with contextlib.suppress(Exception):
            return bytes(system.cat_file(path))
    return None


def locate(files: Sequence[str], cache: Path) -> list[Shard]:
    """The shards that ``files`` (paths and addresses) name; servers are asked about theirs.

    Raises:
        InputError: a remote file does not exist, or cannot be reached and there is no copy of it.
    """
    far = [file for file in files if "://" in file]
    if not far:
        return [Shard(file) for file in files]
    with ThreadPoolExecutor(_ASKING) as pool:
        found = pool.map(lambda url: _locate(url, cache), far)
        return [next(found) if "://" in file else Shard(file) for file in files]


def _locate(url: str, cache: Path) -> Shard:
    name = url.split("?", 1)[0].rstrip("/").rpartition("/")[2] or "shard.tar"
    home = cache / "remote" / hashlib.blake2b(url.encode(), digest_size=12).hexdigest()
    try:
        state, size = _state(url)
    except InputError:
        raise
    except Exception as error:
        reason = _cause(error)
        if _is_missing(reason):
            raise InputError(f"{url} does not exist: check the address and the range in braces") from error
        kept = max(home.glob(f"*/{name}"), key=os.path.getmtime, default=None)
        if kept is not None:
            log.warning("cannot reach %s (%s): using the copy %s", url, reason_of(reason), kept)
            return Shard(os.path.abspath(kept), url, os.path.getsize(kept))
        raise InputError(
            f"cannot reach {url} ({reason_of(reason)}): check the address and the network"
        ) from error
    return Shard(os.path.abspath(home / state / name), url, size)


def _state(url: str) -> tuple[str, int]:
    """A hash of what the server says of a file, and its size (0 where it does not say)."""
    system, path = file_system(url)
    facts = system.info(path)
    size = facts.get("size")
    state = [size] + [str(facts[mark]) for mark in _MARKS if facts.get(mark)]
    return hashlib.blake2b(repr(state).encode(), digest_size=8).hexdigest(), size or 0


def download(shard: Shard, to: Path) -> None:
    """Copy a remote shard to the file ``to``, which holds anything when this fails.

    Raises:
        TransferError: it does not exist, has changed since it was located, or each of several tries failed.
    """
    for pause in (*PAUSES, None):
        try:
            _transfer(shard, to)
            return
        except TransferError:
            raise
        except Exception as error:
            reason = _cause(error)
            if _is_missing(reason):
                raise TransferError(f"{shard.url} does not exist any more") from error
            if pause is None:
                tries = len(PAUSES) + 1
                raise TransferError(
                    f"cannot fetch {shard.url} in {tries} tries ({reason_of(reason)})"
                ) from error
            log.warning("cannot fetch %s (%s): trying again in %g s", shard.url, reason_of(reason), pause)
            time.sleep(pause)


def _transfer(shard: Shard, to: Path) -> None:
    system, path = file_system(shard.url)
    if _state(shard.url)[0] != shard.name.rpartition("-")[2]:
        raise TransferError(f"{shard.url} has changed since it was first looked at")
    system.get_file(path, str(to))
    got = os.path.getsize(to)
    if shard.size and got != shard.size:
        raise OSError(f"it broke off after {got:,} of {shard.size:,} bytes")


def _cause(error: Exception) -> BaseException:
    """The true reason: fsspec raises FileNotFoundError from it, even for a server that does not answer."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error


def _is_missing(error: BaseException) -> bool:
    return isinstance(error, FileNotFoundError) or getattr(error, "status", None) in (404, 410)


def reason_of(error: BaseException) -> str:
    """An error of any library in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
