"""One row of the doctor's report.

Knows its fields. Does not know any check.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """`needed`: without it `tidemill up` cannot work, or the running stack is sick.
    `remedy`: what to do; "" where there is nothing to do, or `text` says it."""

    name: str
    ok: bool
    text: str
    needed: bool = False
    remedy: str = ""


def healthy(name: str, text: str) -> Finding:
    """A part of a running stack that is well."""
    return Finding(name, True, text, needed=True)


def sick(name: str, text: str, remedy: str) -> Finding:
    """A part of a running stack that is not; the doctor's exit code is then 1."""
    return Finding(name, False, text, needed=True, remedy=remedy)
