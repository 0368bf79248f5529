"""What the kernel says of a socket's buffers, and of its queues."""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios
from pathlib import Path

_BYTES_ACKED = slice(120, 128)
"""Place of `tcpi_bytes_acked` in the kernel's `struct tcp_info`."""

_WAITING, _MOST_WAITING = slice(24, 28), slice(28, 32)
"""Places of `tcpi_unacked` and `tcpi_sacked` there. Of a listening socket they tell the connections in its queue,
and how many may be (`tcp_get_info` in net/ipv4/tcp.c)."""


def queue(listener: socket.socket) -> tuple[int, int] | None:
    """How many connections wait in the queue of a listening socket, and how many may; None: not known."""
    try:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _MOST_WAITING.stop)
    except OSError:  # a Unix socket, whose clients wait for a place
        return None
    waiting, most = info[_WAITING], info[_MOST_WAITING]
    return int.from_bytes(waiting, sys.byteorder), int.from_bytes(most, sys.byteorder)


def count_unread(fd: int) -> int:
    """Bytes that have arrived and are not read yet."""
    return _count(fd, termios.FIONREAD)


def count_unsent(fd: int) -> int:
    """Bytes that are written and that the peer has not confirmed."""
    return _count(fd, termios.TIOCOUTQ)


def progress(fd: int) -> int:
    """A number that rises whenever the peer takes bytes."""
    borrowed = socket.socket(fileno=fd)
    try:
        info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED.stop)
        return int.from_bytes(info[_BYTES_ACKED], sys.byteorder)
    except OSError:  # a Unix socket
        return -count_unsent(fd)
    finally:
        borrowed.detach()


def _count(fd: int, request: int) -> int:
    try:
        answer = fcntl.ioctl(fd, request, bytes(4))
    except OSError:
        return 0
    return int(struct.unpack("i", answer)[0])


def has_syn_cookies(file: Path = Path("/proc/sys/net/ipv4/tcp_syncookies")) -> bool:
    """Whether connections that are not complete cannot keep others out, however many they are."""
    try:
        return file.read_text("ascii").strip() != "0"
    except (OSError, ValueError):
        return False
