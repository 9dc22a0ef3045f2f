"""One strict reader for every JSON and TOML file of ours, driven by the type hints of dataclasses.

    reader = Reader(path, ArtifactError, "; export it again")
    manifest = reader.record(Manifest, reader.json())

Files may come from strangers. A key that is missing, unknown or there twice, a wrong type, a number without end and a
text that a terminal would obey are refused in one line that names the file and the place; a value is shown short.

pydantic would do a part of this, but not duplicate keys, endless numbers or control characters, and the base install
would need it to load a variant.

A field's metadata may say `key`, its name in the file, and `OPTIONAL` or `FLAT`.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import re
import stat
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from mimi_export.errors import ConfigError, MimiExportError

# By name, because the type checker looks at the oldest Python, where the reader is a package of its own.
tomllib: Any = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

OPTIONAL = {"optional": True}  # the key may be missing, and is not written where the value is the default
FLAT = {"flat": True}  # the fields of this record lie beside those of the record that holds it
MOST_BYTES = 1 << 22
MOST_VALUES = 1 << 17  # an empty object takes two bytes of a file and sixty-four of memory
MOST_DEPTH = 24
MOST_SHOWN = 60

T = TypeVar("T")
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    types.NoneType: "null",
}


def shown(value: Any) -> str:
    """A value for a message: short, and with nothing in it that a terminal obeys."""
    if isinstance(value, Mapping):
        return f"an object of {len(value)}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    text = json.dumps(value[: MOST_SHOWN + 1] if isinstance(value, str) else value, default=str)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def check_range(name: str, value: int, least: int, most: int) -> None:
    """Raise `ConfigError` for a number that is too small or too large."""
    if not least <= value <= most:
        raise ConfigError(f"{name} is {value}, expected {f'{least} or more' if value < least else f'at most {most}'}")


def plain(record: Any) -> Any:
    """A record as JSON values, with the keys that `Reader` expects."""
    if dataclasses.is_dataclass(record):
        found: dict[str, Any] = {}
        for entry in dataclasses.fields(record):
            value = getattr(record, entry.name)
            if "flat" in entry.metadata:
                found |= plain(value)
            elif "optional" not in entry.metadata or value != entry.default:
                found[entry.metadata.get("key", entry.name)] = plain(value)
        return found
    if isinstance(record, Mapping):
        return {key: plain(value) for key, value in record.items()}
    return [plain(value) for value in record] if isinstance(record, list | tuple) else record


@dataclass(frozen=True)
class Reader:
    """Reads one file.

    Attributes:
        path: the file, for messages.
        error: what is raised.
        hint: what to do, at the end of every message.
        defaults: a key may be missing where its field has a default; otherwise only `OPTIONAL` ones may.
        newer: unknown keys are passed over.
        name: what messages call the file; its path unless given.
    """

    path: Path
    error: type[MimiExportError]
    hint: str = ""
    defaults: bool = False
    newer: bool = False
    name: str = ""

    def json(self) -> Any:
        """The content of a JSON file."""
        return self._parsed("JSON", lambda text: json.loads(text, object_pairs_hook=self._object))

    def toml(self) -> Any:
        """The content of a TOML file."""
        return self._parsed("TOML", tomllib.loads)

    def version(self, content: Any, wanted: int, what: str) -> dict[str, Any]:
        """Take `format_version` away from an object; a copy of the rest."""
        if type(content) is not dict or "format_version" not in content:
            self.refuse("", f"has no format_version, so it is no {what}")
        found = content["format_version"]
        if type(found) is not int or found != wanted:
            self.refuse("", f"has format_version {shown(found)}, this program reads {wanted}; use the one that made it")
        return {key: value for key, value in content.items() if key != "format_version"}

    def record(self, kind: type[T], value: Any, place: str = "") -> T:
        """The record of class `kind` that an object describes."""
        if type(value) is not dict:
            self.refuse(place, f"is {shown(value)}, expected an object")
        rest = dict(value)
        record = self._take(kind, rest, place)
        if rest and not self.newer:
            known = ", ".join(_keys(kind))
            self.refuse(_join(place, next(iter(rest))), f"is an unknown key; known here: {known}")
        return record

    def value(self, hint: Any, value: Any, place: str) -> Any:
        """A value of the type that a hint describes."""
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if dataclasses.is_dataclass(hint):
            return self.record(typing.cast("type[Any]", hint), value, place)
        if origin in (types.UnionType, typing.Union):
            return self._alternative(arguments, value, place)
        if origin is Literal:
            if not any(type(value) is type(known) and value == known for known in arguments):
                self.refuse(place, f"is {shown(value)}, expected one of {', '.join(arguments)}")
            return value
        if isinstance(origin, type) and issubclass(origin, Mapping):
            if type(value) is not dict:
                self.refuse(place, f"is {shown(value)}, expected an object")
            for key in value:
                self.value(arguments[0], key, f"a key of {place}")
            return {key: self.value(arguments[1], item, _join(place, key)) for key, item in value.items()}
        if isinstance(origin, type) and issubclass(origin, Sequence):
            if type(value) is not list:
                self.refuse(place, f"is {shown(value)}, expected a list")
            return tuple(self.value(arguments[0], item, f"{place}[{index}]") for index, item in enumerate(value))
        if hint is float and type(value) is int:
            return float(value)
        if hint is not Any and type(value) is not hint:  # not isinstance: JSON's true is no number
            self.refuse(place, f"is {shown(value)}, expected {_WORDS[hint]}")
        return value

    def refuse(self, place: str, text: str, cause: BaseException | None = None) -> NoReturn:
        """Raise the error: the file, the place, what is wrong, what to do."""
        raise self.error(f"{self.name or self.path}{f': {place}' if place else ''} {text}{self.hint}") from cause

    def _alternative(self, kinds: Sequence[Any], value: Any, place: str) -> Any:
        if value is None and types.NoneType in kinds:
            return None
        others = [kind for kind in kinds if kind is not types.NoneType]
        scalars = [kind for kind in others if kind in _WORDS]
        if len(others) == 1 and not scalars:
            return self.value(others[0], value, place)
        for kind in others:
            if typing.get_origin(kind) is Literal and value in typing.get_args(kind):
                return value
            if type(value) is kind or (kind is float and type(value) is int):
                return float(value) if kind is float else value
        words = [_WORDS.get(kind) or " or ".join(map(shown, typing.get_args(kind))) for kind in others]
        words += ["null"] if types.NoneType in kinds and not self.defaults else []
        return self.refuse(place, f"is {shown(value)}, expected {' or '.join(words)}")

    def _take(self, kind: type[T], rest: dict[str, Any], place: str) -> T:
        """Build a record from the keys that are its own, and take them out of `rest`."""
        hints, values = typing.get_type_hints(kind), {}
        for entry in dataclasses.fields(typing.cast("Any", kind)):
            key = entry.metadata.get("key", entry.name)
            if "flat" in entry.metadata:
                values[entry.name] = self._take(hints[entry.name], rest, place)
            elif key in rest:
                values[entry.name] = self.value(hints[entry.name], rest.pop(key), _join(place, key))
            elif "optional" not in entry.metadata and not (self.defaults and _has_default(entry)):
                self.refuse(_join(place, key), "is missing")
        try:
            return kind(**values)
        except ConfigError as error:
            where = f"{self.name or self.path}{f': {place}' if place else ''}"
            raise self.error(f"{where}: {error}{self.hint}") from error

    def _parsed(self, form: str, parse: Callable[[str], Any]) -> Any:
        try:
            value = parse(self._text())
        except MimiExportError:
            raise
        except OSError as error:
            self.refuse("", f"cannot be read: {error.strerror}", error)
        except UnicodeDecodeError as error:
            self.refuse("", "is not UTF-8 text", error)
        except json.JSONDecodeError as error:
            self.refuse("", f"is not valid JSON ({error.msg} at line {error.lineno}, column {error.colno})", error)
        except tomllib.TOMLDecodeError as error:
            self.refuse("", f"is not valid TOML: {str(error).splitlines()[0]}", error)
        except ValueError as error:
            self.refuse("", f"is not valid {form} (a number is too long)", error)
        except RecursionError as error:
            self.refuse("", "is nested too deep", error)
        self._harmless(value)
        return value

    def _text(self) -> str:
        status = self.path.stat()
        if not stat.S_ISREG(status.st_mode):
            self.refuse("", "is no regular file")
        if status.st_size > MOST_BYTES:
            self.refuse("", f"has {status.st_size} bytes, expected at most {MOST_BYTES}")
        content = self.path.read_bytes()
        if sum(map(content.count, b",[{")) > MOST_VALUES:
            self.refuse("", f"holds more than {MOST_VALUES} values")
        return content.decode()

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                self.refuse("", f"has the key {shown(key)} twice in one object")
            found[key] = value
        return found

    def _harmless(self, value: Any, place: str = "", depth: int = 0) -> None:
        """Refuse what no file of ours holds and what harms whoever prints it or computes with it."""
        if depth > MOST_DEPTH:
            self.refuse("", "is nested too deep")
        if isinstance(value, str) and not re.sub(r"[\n\t]", "", value).isprintable():
            self.refuse(place, f"is {shown(value)}, expected a text without control characters")
        if isinstance(value, int) and abs(value) >= 2**63:
            self.refuse(place, "is a whole number of more than 64 bits")
        if isinstance(value, float) and not math.isfinite(value):
            self.refuse(place, f"is {value}, expected a finite number")
        if isinstance(value, dict):
            for key, item in value.items():
                self._harmless(key, f"a key of {place}" if place else "a key", depth)
                self._harmless(item, _join(place, key), depth + 1)
        if isinstance(value, list):
            for index, item in enumerate(value):
                self._harmless(item, f"{place}[{index}]", depth + 1)


def _join(place: str, key: str) -> str:
    """The place of a key, which may be a stranger's."""
    key = key if len(key) <= MOST_SHOWN and key.isprintable() else shown(key)
    return f"{place}.{key}" if place else key


def _has_default(entry: dataclasses.Field[Any]) -> bool:
    return entry.default is not dataclasses.MISSING or entry.default_factory is not dataclasses.MISSING


def _keys(kind: type[Any]) -> list[str]:
    keys: list[str] = []
    for entry in dataclasses.fields(kind):
        flat = "flat" in entry.metadata
        keys += _keys(typing.get_type_hints(kind)[entry.name]) if flat else [entry.metadata.get("key", entry.name)]
    return keys
