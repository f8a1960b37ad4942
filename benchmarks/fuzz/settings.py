"""Settings from the environment and from settings.toml that may be anything, or almost valid.

Knows the settings' names. Does not know a stack. The laws: `load` returns settings or raises
`SettingsError`, never another error, and no message holds a secret.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from pydantic import BaseModel

from benchmarks.fuzz.cases import Tally
from deploy.settings import Settings, SettingsError, from_stored, load
from deploy.settings.names import PREFIX

SECRET = "s3cr3t-of-the-shop"
VALUES = [
    "", " ", "0", "-1", "1e999", "nan", "inf", "true", "null", "[]", "{}", "{", '{"a": 1}', "[1]",
    "[::1]:80", "::1", "localhost:1", "host:99999", ":0", "http://", "http://[", "kafka", "external",
    "99999999999999999999", "٣", '{"recommend": ["x"]}', f'{{"{SECRET}": ["x"]}}',
    f'{{"{SECRET}": 7}}', f'{{"{SECRET}"', SECRET,
]  # fmt: skip


def _names() -> list[str]:
    """The variable of every section and key."""
    found = []
    for section, field in Settings.model_fields.items():
        found.append(PREFIX + section.upper())
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += [f"{PREFIX}{section}__{key}".upper() for key in kind.model_fields]
    return found


_variable_text = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12
)
_name = st.sampled_from(_names()) | st.builds(
    lambda name, more: name + more, st.sampled_from(_names()), st.sampled_from(["S", "_", "__X"])
)


@dataclass(frozen=True)
class Stated:
    """A process's environment and its settings file."""

    variables: Mapping[str, str]
    file: str | None


def _toml(values: Mapping[str, Any]) -> str:
    lines = []
    for name, value in values.items():
        section, _, key = name.removeprefix(PREFIX).lower().partition("__")
        lines.append(f"{section}.{key or 'kind'} = {_where_secret(name, value)}")
    return "\n".join(lines)


def _where_secret(name: str, value: str) -> str:
    """The value; outside of the section that keeps secrets there are none."""
    return value if name.startswith(f"{PREFIX}SECURITY") else value.replace(SECRET, "plain")


_toml_value = st.sampled_from(
    ["1", "-1", "1.5", "nan", "true", '""', '"x"', "[]", "{}", "1979-05-27", f'"{SECRET}"',
     f'{{ "{SECRET}" = ["x"] }}', "99999999999999999999", '"localhost:1"']
)  # fmt: skip
stated_settings = st.builds(
    Stated,
    st.dictionaries(_name, st.sampled_from(VALUES) | _variable_text, max_size=4),
    st.none()
    | st.dictionaries(_name, _toml_value, max_size=4).map(_toml)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
)


def fuzz_settings(cases: int, seed: int) -> Tally:
    """Tries so many environments, each with or without a file."""
    tally = Tally("settings")
    with tempfile.TemporaryDirectory(prefix="tidemill-fuzz-") as folder:
        path = Path(folder) / "settings.toml"

        def law(stated: Stated) -> None:
            variables = {n: _where_secret(n, value) for n, value in stated.variables.items()}
            if stated.file is not None:
                path.write_text(stated.file, encoding="utf-8")
                variables[f"{PREFIX}SETTINGS"] = str(path)
            with _environment(variables):
                _check()

        tally.try_cases("settings", stated_settings, law, cases, seed)
    return tally


def _check() -> None:
    try:
        settings = load()
    except SettingsError as error:
        refusal = str(error)
    else:
        _check_stored(settings)
        return
    assert refusal.strip(), "an error says what is wrong"
    assert SECRET not in refusal, "a message holds a secret"


def _check_stored(settings: Settings) -> None:
    stored = settings.model_dump(mode="json")
    assert from_stored(stored) == settings, "settings survive being written down"
    assert SECRET not in repr(settings.security), "a secret is shown"


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """TIDEMILL_ variables are these alone."""
    before = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    for name in before:
        del os.environ[name]
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
        os.environ.update(before)
