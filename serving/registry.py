"""Every surface by name. Adding a surface adds its name here.

Knows names only, so that a process that serves nothing can read them. A surface is the module of
that name in `serving.surfaces`.
"""

from __future__ import annotations

SURFACES: tuple[str, ...] = ("feed", "queries", "reactivation")

EVENT_SURFACES: tuple[str, ...] = (*SURFACES, "search")
"""The surfaces that an event may name; `search`: a search page of the owner's own."""
