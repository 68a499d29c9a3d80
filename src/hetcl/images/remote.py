"""Remote shards (``https://``, ``s3://``, ``gs://`` ... through fsspec): copied to local disk, then like
others.

A copy is written under a temporary name and renamed; its folder is named by the address and by what the
server says of the file (size, ETag or time), so a changed file is fetched again. A copy serves when the
server cannot be reached.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hetcl.errors import InputError

log = logging.getLogger(__name__)

_SPARE = 256 << 20
"""Bytes of the disk that a download leaves free."""
_MARKS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "updated", "created")
_GB = 1e9


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of ``url``, and the path in it. Raises InputError when a package is missing."""
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
    """Addresses of the ``.tar`` files right below a remote folder, sorted."""
    system, path = file_system(url)
    try:
        names = system.ls(path, detail=False)
    except Exception as error:  # each file system has its own
        raise InputError(
            f"cannot list {url} ({_reason(error)}): check the address, or name the shards"
        ) from error
    found = sorted(name for name in names if name.endswith(".tar"))
    if not found:
        raise InputError(f"no .tar shards in {url}: remote pictures are read from tar shards")
    return [system.unstrip_protocol(name) for name in found]


def fetch(urls: Sequence[str], cache: Path) -> list[str]:
    """Local copies of ``urls``, downloaded where they are not there yet.

    Raises:
        InputError: a file is missing or cannot be fetched, or the disk has no room for all of them.
    """
    places = [_place(url, cache) for url in urls]
    wanted = [
        (url, place, size) for url, (place, size) in zip(urls, places, strict=True) if not place.exists()
    ]
    if wanted:
        need = sum(size or 0 for _, _, size in wanted)
        free = shutil.disk_usage(cache).free
        if need + _SPARE > free:
            raise InputError(
                f"{len(wanted)} shards need {need / _GB:.2f} GB, {cache} has {free / _GB:.2f} GB free: "
                "name fewer shards in DATA, or set HETCL_CACHE to a larger disk"
            )
        log.info("fetching %d shards, %.2f GB, to %s", len(wanted), need / _GB, cache)
    for url, place, size in wanted:
        _download(url, place, size)
    return [str(place) for place, _ in places]


def fetch_text(url: str, cache: Path) -> bytes | None:
    """A small file beside the shards, or None when there is none."""
    with contextlib.suppress(InputError):
        system, path = file_system(url)
        with contextlib.suppress(Exception):
            return bytes(system.cat_file(path))
    return None


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _place(url: str, cache: Path) -> tuple[Path, int | None]:
    """Where the copy of ``url`` lies or is to lie, and its size in bytes where known."""
    name = url.split("?", 1)[0].rstrip("/").rpartition("/")[2] or "shard.tar"
    home = cache / "remote" / hashlib.blake2b(url.encode(), digest_size=12).hexdigest()
    system, path = file_system(url)
    try:
        facts = system.info(path)
    except Exception as error:
        # fsspec raises FileNotFoundError from the true reason, even for a server that does not answer.
        reason = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
        if isinstance(reason, FileNotFoundError) or getattr(reason, "status", None) in (404, 410):
            raise InputError(f"{url} does not exist: check the address and the range in braces") from error
        kept = max(home.glob(f"*/{name}"), key=os.path.getmtime, default=None)
        if kept is not None:
            log.warning("cannot reach %s (%s): using the copy %s", url, _reason(reason), kept)
            return kept, None
        raise InputError(
            f"cannot reach {url} ({_reason(reason)}): check the address and the network"
        ) from error
    size = facts.get("size")
    state = [size] + [str(facts[mark]) for mark in _MARKS if facts.get(mark)]
    return home / hashlib.blake2b(repr(state).encode(), digest_size=8).hexdigest() / name, size


def _download(url: str, place: Path, size: int | None) -> None:
    system, path = file_system(url)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(place):
            if place.exists():  # another process was first
                return
            handle, temporary = tempfile.mkstemp(dir=place.parent, suffix=".part")
            os.close(handle)
            try:
                system.get_file(path, temporary)
                got = os.path.getsize(temporary)
                if size is not None and got != size:
                    raise InputError(
                        f"{url} broke off after {got:,} of {size:,} bytes: run the command again"
                    )
                os.replace(temporary, place)
            finally:
                Path(temporary).unlink(missing_ok=True)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{url} does not exist: check the address and the range in braces") from error
    except Exception as error:
        raise InputError(
            f"cannot fetch {url} ({_reason(error)}): check the network and the disk, run the command again"
        ) from error


@contextlib.contextmanager
def _only_one(place: Path) -> Iterator[None]:
    """Let one process at a time download to ``place`` (where the system has file locks)."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(place.parent / ".lock", "w") as lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
