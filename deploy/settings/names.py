"""Names of settings: which exist, which one was meant, and what an error may say.

Knows the fields of the settings' sections and the other TIDEMILL_ variables. Does not know values:
no message of this module holds one, since a value may be a secret.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel

from deploy import renamed

PREFIX = "TIDEMILL_"
# Variables that are no settings: of the command line, the caches, the benchmarks and the tests.
OTHER_VARIABLES = frozenset(
    PREFIX + name
    for name in (
        "API_KEY",
        "BENCH_JOBS",
        "CACHE",
        "CHAOS_ROUNDS",
        "DATA",
        "FUZZ_EXAMPLES",
        "IMPRESSION_KEY",
        "ROOT",
        "SCREENSHOTS",
        "SEED",
        "SETTINGS",
        "SOAK_MINUTES",
        "UPDATE_KILLS",
    )
)
SECRET_KEYS = ("security", "api_keys")  # its keys are the secrets
CLOSE = 0.6  # difflib's ratio from which a name is suggested


def unknown_variables(environment: Iterable[str], settings: type[BaseModel]) -> Iterator[str]:
    """One message for each TIDEMILL_ variable that is neither a setting nor known otherwise."""
    for name in sorted(environment):
        upper = name.upper()
        if upper.startswith(PREFIX) and not _is_known(upper, settings):
            shown = _shown(upper)
            known = [*_variables(settings), *sorted(OTHER_VARIABLES)]
            yield f"{shown} is not a setting{_suggestion(shown, known)}"


def explain(
    location: tuple[int | str, ...], kind: str, message: str, settings: type[BaseModel]
) -> str:
    """What is wrong with the value at `location`, and how it is set. `kind` is pydantic's."""
    if not location:
        return message.removeprefix("Value error, ")
    shown = location[:2] if location[:2] == SECRET_KEYS else location
    keys = ".".join(str(key) for key in shown)
    if kind == "extra_forbidden":
        names = _dotted(settings)
        if shown[-1] == "kind":
            section = str(shown[0])
            before = f"{PREFIX}{section.upper()}__"
            near = [each for each in _variables(settings) if each.startswith(before)]
            example = f", such as {near[0]}" if near else ""  # a section may have names of its own
            return f"{'.'.join(map(str, shown[:-1]))} has no kind: set its keys{example}"
        # A key may be a secret in the wrong place.
        name = "a key of security" if location[0] == SECRET_KEYS[0] else keys
        return f"{name} (settings.toml) is not a setting{_suggestion(keys, names)}"
    variable = PREFIX + "__".join(str(key) for key in shown).upper()
    text = message.removeprefix("Value error, ")
    return f"{keys} ({variable}, or settings.toml): {text}"


def broken_json(environment: Mapping[str, str]) -> Iterator[str]:
    """One message for each TIDEMILL_ variable that looks like JSON and is not."""
    for name, value in sorted(environment.items()):
        if name.upper().startswith(PREFIX) and value.lstrip().startswith(("{", "[")):
            try:
                json.loads(value)
            except ValueError as error:
                yield f"{_shown(name.upper())} is not valid JSON, {str(error).rpartition(':')[2].strip()}"


def _shown(name: str) -> str:
    """The variable without the keys of a mapping, which may be secrets."""
    return PREFIX + "__".join(name.removeprefix(PREFIX).split("__")[:2])


def _is_known(name: str, settings: type[BaseModel]) -> bool:
    if name in OTHER_VARIABLES:
        return True
    found: Any = settings
    keys = name.removeprefix(PREFIX).lower().split("__")
    if ".".join(keys[:2]) in renamed.SETTINGS:
        return True
    for key in keys:
        if not (isinstance(found, type) and issubclass(found, BaseModel)):
            return True  # a key of a mapping, such as feedback.windows_ms
        if key not in found.model_fields:
            return False
        found = found.model_fields[key].annotation
    return True


def _dotted(settings: type[BaseModel]) -> list[str]:
    """ "gateway" and "gateway.port", for every section and key."""
    names = []
    for section, field in settings.model_fields.items():
        names.append(section)
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += [f"{section}.{key}" for key in kind.model_fields]
    return names


def _variables(settings: type[BaseModel]) -> list[str]:
    return [PREFIX + name.replace(".", "__").upper() for name in _dotted(settings)]


def _suggestion(name: str, known: list[str]) -> str:
    """The nearest name; the common prefix does not count as nearness."""
    by_rest = {each.removeprefix(PREFIX): each for each in known}
    near = get_close_matches(name.removeprefix(PREFIX), by_rest, n=1, cutoff=CLOSE)
    if near:
        return f"; did you mean {by_rest[near[0]]}?"
    return "; deploy/settings/__init__.py lists every setting"
