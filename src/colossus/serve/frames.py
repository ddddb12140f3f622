"""What the door and an engine's process say to each other over a Unix socket: 4 bytes of length, then one msgpack map."""

from __future__ import annotations

import struct
from typing import Any

import msgpack

from colossus.spec.errors import EngineError

_LENGTH = struct.Struct(">I")
# The longest there is by right: a prompt of millions of tokens, or log probabilities of one.
MAX_FRAME_BYTES = 256 << 20
RECEIVE_BYTES = 1 << 18


def frame(message: dict[str, Any]) -> bytes:
    """One message as it goes over the socket."""
    body: bytes = msgpack.packb(message)
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Messages out of the bytes of a stream, in whatever pieces they come."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that are whole now. Raises EngineError for what cannot be one of ours."""
        self._rest += data
        messages, start = [], 0
        while len(self._rest) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._rest, start)
            if length > MAX_FRAME_BYTES:
                raise EngineError(f"a frame of {length} bytes: more than {MAX_FRAME_BYTES}; the other side does not speak our protocol")
            end = start + _LENGTH.size + length
            if len(self._rest) < end:
                break
            messages.append(_read(bytes(self._rest[start + _LENGTH.size : end])))
            start = end
        del self._rest[:start]
        return messages


def _read(body: bytes) -> dict[str, Any]:
    try:
        message = msgpack.unpackb(body, strict_map_key=False)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise EngineError(f"a frame that is no msgpack: {error}") from error
    if not isinstance(message, dict) or "kind" not in message:
        raise EngineError("a frame without a kind")
    return message
