"""A program in a pseudo-terminal of some width, and the screen that its output leaves."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

TOKENS = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")


class Screen:
    """What rich's displays use of a terminal's language: line ends, cursor up, erase the line. Wraps as they do."""

    def __init__(self, columns: int) -> None:
        self.columns, self.lines, self.row, self.column = columns, [""], 0, 0

    def feed(self, text: str) -> None:
        for token in TOKENS.finditer(text):
            if token[0] == "\r":
                self.column = 0
            elif token[0] == "\n":
                self._down()
            elif token[2] == "A":
                self.row = max(0, self.row - int(token[1] or 1))
            elif token[2] == "K":
                self.lines[self.row] = ""
            elif token[2] is None:
                for letter in token[0]:
                    self._write(letter)

    def _down(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.lines):
            self.lines.append("")

    def _write(self, letter: str) -> None:
        if self.column == self.columns:
            self._down()
        line = self.lines[self.row].ljust(self.column)
        self.lines[self.row] = line[: self.column] + letter + line[self.column + 1 :]
        self.column += 1


def frames(code: str, columns: int) -> list[list[str]]:
    """The screens that Python code leaves one after the other, in a terminal of so many columns; it must end well."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "TTY_COMPATIBLE")}
    env |= {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=follower, stdout=follower, stderr=follower, env=env
    )
    os.close(follower)
    screen, found, data = Screen(columns), list[list[str]](), b""
    while True:
        try:
            more = os.read(leader, 65536)
        except OSError:  # the program has ended
            break
        if not more:
            break
        data += more
        try:
            screen.feed(data.decode())
        except UnicodeDecodeError:  # in the middle of a letter
            continue
        data = b""
        found.append([line.rstrip() for line in screen.lines])
    os.close(leader)
    assert child.wait() == 0, found[-1:]
    return found
