"""Errors of a load test or a chat that its user can mend."""

from __future__ import annotations

from colossus.spec.errors import ColossusError


class ServerError(ColossusError):
    """A server cannot be reached, or answers what cannot be worked with."""


class TraceError(ColossusError):
    """A trace file cannot be read."""
