"""Types of settings' values: addresses, ports, times. Each error says what the value must be.

Knows forms and bounds. Does not know which setting has which type (`deploy.settings`).
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Section(BaseModel):
    """One section of the settings. A misspelled key is an error, not a default."""

    model_config = ConfigDict(extra="forbid")


HOST = r"(\[[0-9A-Fa-f:.]+\]|[^\s:,/\[\]]+)"


def _text(pattern: str, form: str) -> AfterValidator:
    """A check of a text's form that says in words what it should be; "" is left to the section."""

    def check(text: str) -> str:
        if text and not re.fullmatch(pattern, text):
            raise ValueError(f"must be {form}")
        return text

    return AfterValidator(check)


_ADDRESS = rf"{HOST}:\d{{1,5}}"
Address = Annotated[str, _text(_ADDRESS, "host:port, an IPv6 address in brackets")]
Addresses = Annotated[str, _text(rf"{_ADDRESS}(,{_ADDRESS})*", "host:port, or several with commas")]
Host = Annotated[
    str,
    Field(min_length=1),
    _text(r"[^\s/,\[\]]+", "a host name or address without port or brackets"),
]
Url = Annotated[str, _text(r"https?://\S+", "http://host:port or https://host:port")]
Port = Annotated[int, Field(ge=0, le=65535)]
Milliseconds = Annotated[int, Field(ge=0, le=2**53)]
