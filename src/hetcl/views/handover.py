"""How a batch gets from a worker process to the main one, and what a worker does.

What describes a batch goes through a socket of the worker's own, the bytes of its tensors through a nameless file in
memory (Linux's ``memfd``) whose descriptor goes along. It takes no room in /dev/shm, which containers keep small, no
lock is shared, and the memory is gone with whoever held it. Where the system has no such file, or refuses one, the
bytes go through the socket as well: slower, and nothing else.

A message: the lengths of its pickle and of its block of bytes (8 bytes each) and whether the block is in a file (1);
the pickle; the block, unless it is in a file. Tensors and arrays begin at multiples of 64 bytes of the block.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import select
import signal
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hetcl.errors import InputError, WorkFailed
from hetcl.machine import die_with_parent, grouped_memory

HEAD = struct.Struct("=QQ?")
SMALL = 1 << 16
"""Bytes that are not worth a file."""
ALIGNED = 64
READ = 1 << 20
"""Bytes to take from a socket at once."""


# ---- messages ------------------------------------------------------------------------------------------------------


def send(sock: socket.socket, content: Any) -> None:
    """Send anything that can be pickled; nothing is sent when that fails. Raises ``OSError`` when nobody listens."""
    text, pieces, size = _dump(content)
    fd = _file_of(pieces, size) if size >= SMALL else None
    if fd is None:
        sock.sendall(HEAD.pack(len(text), size, False))
        sock.sendall(text)
        for gap, piece in pieces:
            sock.sendall(bytes(gap))
            sock.sendall(piece)
        return
    try:
        socket.send_fds(sock, [HEAD.pack(len(text), size, True)], [fd])
    finally:
        os.close(fd)
    sock.sendall(text)


class Inbox:
    """What arrives on a socket, message by message; reading never waits for the rest of one.

    Args:
        sock: read from as far as it has something.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._bytes, self._files = bytearray(), deque[int]()

    def read(self) -> bool:
        """Take what is there; False when the other side is gone.

        Raises:
            WorkFailed: a file could not be received for want of descriptors.
        """
        try:
            if not hasattr(socket, "recv_fds"):
                data = self.sock.recv(READ)
            else:
                data, fds, flags, _ = socket.recv_fds(self.sock, READ, 4)
                self._files.extend(fds)
                if flags & socket.MSG_CTRUNC:
                    raise WorkFailed(
                        "too many files are open to receive images: raise the limit (ulimit -n) or use fewer "
                        "workers, and go on with --resume"
                    )
        except OSError:  # reset by a process that died with something unread
            return False
        self._bytes += data
        return bool(data)

    def messages(self) -> Iterator[Any]:
        """The messages that are whole."""
        while len(self._bytes) >= HEAD.size:
            length, size, in_file = HEAD.unpack_from(self._bytes)
            end = HEAD.size + length + (0 if in_file else size)
            if len(self._bytes) < end:
                return
            text = bytes(self._bytes[HEAD.size : HEAD.size + length])
            if in_file:
                block = _mapped(self._files.popleft(), size)
            else:
                block = memoryview(self._bytes[HEAD.size + length : end])
            del self._bytes[:end]
            yield _load(text, block)

    def close(self) -> None:
        """Close the socket, and files that nobody asked for."""
        self.sock.close()
        while self._files:
            os.close(self._files.popleft())


class _Pickler(pickle.Pickler):
    """Tensors of the CPU as one buffer each."""

    def reducer_override(self, item: Any) -> Any:
        if type(item) is not Tensor or item.device.type != "cpu" or item.layout != torch.strided:
            return NotImplemented
        # In the order in which it lies in memory (views are channels last), so that nothing is reordered.
        strides = item.stride()
        order = sorted(range(item.dim()), key=lambda axis: -strides[axis])
        item = item.detach().permute(order).contiguous()
        if not item.numel():
            return _tensor, (b"", item.dtype, tuple(item.shape), order)
        flat = item.reshape(-1).view(torch.uint8).numpy().data
        return _tensor, (pickle.PickleBuffer(flat), item.dtype, tuple(item.shape), order)


def _tensor(data: Any, dtype: torch.dtype, shape: tuple[int, ...], order: list[int]) -> Tensor:
    """Around the memory that holds it; ``shape`` is that of memory, ``order`` says which axis each was."""
    flat = torch.frombuffer(data, dtype=dtype).reshape(shape) if data else torch.empty(shape, dtype=dtype)
    return flat.permute(sorted(range(len(order)), key=order.__getitem__))


def _dump(content: Any) -> tuple[bytes, list[tuple[int, memoryview]], int]:
    """The pickle, (bytes of padding, bytes) of each buffer, and the length of the block they make."""
    buffers: list[pickle.PickleBuffer] = []
    out = BytesIO()
    _Pickler(out, protocol=5, buffer_callback=buffers.append).dump(content)
    pieces, lengths, size = [], [], 0
    for buffer in buffers:
        view = buffer.raw()
        gap = -size % ALIGNED
        pieces.append((gap, view))
        lengths.append((size + gap, len(view)))
        size += gap + len(view)
    return pickle.dumps(lengths) + out.getvalue(), pieces, size


def _load(text: bytes, block: memoryview) -> Any:
    stream = BytesIO(text)
    lengths = pickle.load(stream)
    return pickle.load(stream, buffers=[block[start : start + length] for start, length in lengths])


def _file_of(pieces: list[tuple[int, memoryview]], size: int) -> int | None:
    """A nameless file in memory that holds a block, or None where there can be none."""
    if not hasattr(os, "memfd_create"):
        return None
    fd = -1
    try:
        fd = os.memfd_create("hetcl")
        os.truncate(fd, size)
        at = 0
        for gap, piece in pieces:
            at += gap
            while len(piece):
                written = os.pwrite(fd, piece, at)
                at, piece = at + written, piece[written:]
        return fd
    except OSError:
        if fd >= 0:
            os.close(fd)
        return None


def _mapped(fd: int, size: int) -> memoryview:
    """The bytes of a file, for as long as somebody holds them."""
    try:
        return memoryview(mmap.mmap(fd, size))
    except OSError as error:
        raise MemoryError(f"unable to allocate {size} bytes for a batch of images") from error
    finally:
        os.close(fd)


# ---- the worker ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """An error that a worker hands over as it is."""

    error: Exception


def work(sock: socket.socket, compute: Callable[[int, int], Any], parent: int, tied: bool) -> None:
    """Compute what is asked for until nobody asks any more: the life of a worker process.

    Asked for are ``(round, number, (epoch, step))``, given is ``(round, number, batch or Failure)``. A new round makes
    what was asked for in an older one pointless.

    Args:
        parent: process id of whoever asks.
        tied: end at once when that process does, also in the middle of a batch (Linux).
    """
    for name in (
        "SIGINT",
        "SIGTERM",
        "SIGHUP",
        "SIGUSR1",
        "SIGUSR2",
    ):  # the main process saves, then stops us
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if tied:
        die_with_parent()
    _first_to_go()
    torch.set_num_threads(1)
    inbox, todo = Inbox(sock), deque[tuple[int, int, tuple[int, int]]]()
    while os.getppid() == parent:
        while select.select([sock], [], [], 0 if todo else 1)[0]:
            if not inbox.read():
                return
            for request in inbox.messages():
                if todo and todo[-1][0] != request[0]:
                    todo.clear()
                todo.append(request)
        if todo:
            round, number, item = todo.popleft()
            try:
                _answer(sock, round, number, _computed(compute, item))
            except OSError:  # nobody listens
                return


def _computed(compute: Callable[[int, int], Any], item: tuple[int, int]) -> Any:
    try:
        return compute(*item)
    except (InputError, WorkFailed) as error:
        return Failure(error)
    except Exception as error:
        return Failure(_notes(error))


def _answer(sock: socket.socket, round: int, number: int, result: Any) -> None:
    """Hand a batch over, or why that cannot be done. Raises ``OSError`` when nobody listens."""
    try:
        send(sock, (round, number, result))
    except OSError:
        raise
    except Exception as error:
        send(sock, (round, number, Failure(_notes(error))))


def _notes(error: Exception) -> Exception:
    """An error with where it came from, such that it can be sent."""
    import traceback

    text = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In a process that prepares images:\n{text}")
    return error


def _first_to_go() -> None:
    """Where a container's or job's memory runs out, be killed before the main process, which can save and say so."""
    if grouped_memory():
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
