"""Closed forms: work, bytes, time, power and money as pure functions of a job and a machine."""
