"""A real terminal for a command: a pseudo-terminal whose other end the test holds."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

SCRIPT = Path(sys.executable).with_name("sterna")
ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|\][^\x07]*\x07|[()][A-Z0-9]|[=>])")
TIMEOUT_S = 20.0


class Terminal:
    """`sterna` with `arguments`, on its own controlling terminal of 80 or `columns` columns."""

    def __init__(self, *arguments: str, columns: int = 80, **environment: str) -> None:
        self.seen = b""
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        keep = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        self._process = subprocess.Popen(
            ["setsid", "--ctty", SCRIPT, *arguments],  # Ctrl-C is for whom the terminal controls
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={"TERM": "xterm-256color", "LANG": "C.UTF-8", **keep, **environment},
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    @property
    def text(self) -> str:
        """All that was shown so far, without the escapes that placed and coloured it."""
        return ESCAPES.sub("", self.seen.decode(errors="replace"))

    def expect(self, words: str) -> None:
        """Wait until `words` have been shown."""
        self._read_until(lambda: words in self.text, words)

    def type(self, text: bytes) -> None:
        os.write(self._master, text)

    def insist(self, text: bytes) -> int:
        """Type until the command ends, as people do: Python's `input` may miss one Ctrl-C."""
        deadline = time.monotonic() + TIMEOUT_S
        while self._process.poll() is None and time.monotonic() < deadline:
            self.type(text)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.5)
        return self.end()

    def insist_until(self, text: bytes, words: str) -> None:
        """Type again and again until `words` are shown: a guest that boots hears nothing yet."""
        deadline = time.monotonic() + 3 * TIMEOUT_S
        while words not in self.text and time.monotonic() < deadline:
            self.type(text)
            with suppress(AssertionError):
                self._read_until(lambda: words in self.text, words, timeout_s=1.0)
        assert words in self.text

    def has_echo(self) -> bool:
        return bool(termios.tcgetattr(self._master)[3] & termios.ECHO)

    def end(self) -> int:
        """Wait for the command and return its exit code."""
        self._read_until(lambda: False, "its end", until_end=True)
        return self._process.wait(TIMEOUT_S)

    def _read_until(
        self, enough, what: str, *, until_end: bool = False, timeout_s: float = TIMEOUT_S
    ) -> None:
        deadline = time.monotonic() + timeout_s
        while not enough():
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self._master], [], [], left)[0]
            assert ready, f"no {what!r} in {self.text!r}"
            try:
                data = os.read(self._master, 65536)
            except OSError:  # how Linux says that the other end is closed
                data = b""
            if not data:
                assert until_end, f"it ended without {what!r}: {self.text!r}"
                return
            self.seen += data
