"""Decisions as pure functions of what a real controller can see: no clock, no I/O. A loop elsewhere carries them out."""
