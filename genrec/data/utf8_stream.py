"""A stream of bytes as valid UTF-8, so that one broken character costs one line and not the file."""

import io
import re

import pyarrow as pa

BROKEN = "\ufdd0"
"""Stands for bytes that are no UTF-8: a code point that Unicode keeps out of text for good."""

_BLOCK_BYTES = 4 * 2**20
_ESCAPED = re.compile("[\udc80-\udcff]+")


class Utf8Stream(io.RawIOBase):
    """`source` with `BROKEN` for runs of bytes that are no UTF-8; `found_broken` says whether there were any so far."""

    def __init__(self, source: pa.NativeFile) -> None:
        super().__init__()
        self.found_broken = False
        self._source = source
        self._ready = memoryview(b"")
        self._rest = b""  # of a line whose end has not been read yet

    def readable(self) -> bool:
        """True: this is a stream to read from."""
        return True

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes (all that are left when negative); empty at the end."""
        if size < 0:
            return b"".join(iter(lambda: self.read(_BLOCK_BYTES), b""))
        if not self._ready:
            self._ready = memoryview(self._next_lines())
        block, self._ready = self._ready[:size], self._ready[size:]
        return bytes(block)

    def _next_lines(self) -> bytes:
        """The next whole lines; a character cannot reach over their end."""
        blocks = [self._rest]
        while block := self._source.read(_BLOCK_BYTES):
            lines, newline, rest = block.rpartition(b"\n")
            if newline:
                self._rest = rest
                return self._mend(b"".join([*blocks, lines, newline]))
            blocks.append(block)
        self._rest = b""
        return self._mend(b"".join(blocks))

    def _mend(self, lines: bytes) -> bytes:
        try:
            lines.decode()
        except UnicodeDecodeError:
            self.found_broken = True
            return _ESCAPED.sub(BROKEN, lines.decode(errors="surrogateescape")).encode()
        return lines
