"""Settings as text: the part of YAML that is needed to write them, read by the type of a field.

Mappings, lists and scalars. A plain scalar is what its field says: the text ``010`` is ten for a
number and three characters for a name. There are no tags, aliases, dates, octal or base-60
numbers; several documents, duplicate keys, deep nesting and long texts are refused. Nothing is
read but regular files in UTF-8.
"""

from __future__ import annotations

import os
import re
import stat
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

from sft_rl.errors import UserError, shortened

MAX_BYTES = 256 * 2**10
"""Size of a file, or of a setting's text."""
MAX_DEPTH = 16
MOST_DIGITS = 100
"""Characters of a number."""
NULLS = ("", "~", "null", "Null", "NULL")
WORDS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
INFINITE = {".inf": "inf", "-.inf": "-inf", ".nan": "nan"}
WHOLE = re.compile(r"[-+]?\d+", re.ASCII)
REAL = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?", re.ASCII)


class _Plain(str):
    """A scalar without quotes, whose meaning its field gives."""


class _Wrong(Exception):
    """What is not allowed, for the end of a line."""


def read_file(path: str | Path, kind: Any = Any) -> Any:
    """Read a file of settings.

    Args:
        path: The file.
        kind: The type of what it holds, as a section's class; tells text from numbers.

    Raises:
        UserError: In one line, if it cannot be read or holds what is not allowed.
    """
    try:
        return _typed(_tree(_content(path)), kind)
    except _Wrong as error:
        raise UserError(f"cannot read {path}: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def read_text(text: str, kind: Any = Any) -> Any:
    """Read a whole text of settings; otherwise as :func:`read_file`."""
    try:
        return _typed(_tree(text), kind)
    except _Wrong as error:
        raise UserError(str(error)) from error


def read_value(text: str, kind: Any = Any) -> Any:
    """Read one setting's value, as it stands on a command line.

    Brackets, braces and quotes at its beginning are YAML's; anything else is taken as it is, so
    that ``data #1/p.npy`` and ``a: b`` are names of files.

    Args:
        text: The value.
        kind: The type of its field.

    Raises:
        UserError: If it holds what is not allowed.
    """
    if len(text) > MAX_BYTES:
        raise UserError(f"is longer than {MAX_BYTES} characters")
    if text.lstrip()[:1] in ("[", "{", '"', "'"):
        return read_text(text, kind)
    return _typed(_Plain(text), kind)


def _content(path: str | Path) -> str:
    """Text of a regular file; a pipe or a device could go on for ever."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _Wrong("it is no regular file")
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise _Wrong(f"it is larger than {MAX_BYTES // 2**10} KiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _Wrong(f"it is not UTF-8 text, at byte {error.start}") from error


def _tree(text: str) -> Any:
    """Build mappings and lists of unread scalars."""
    try:
        events = yaml.parse(text, Loader=yaml.SafeLoader)
        documents = list(_documents(events))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        why = getattr(error, "problem", None) or getattr(error, "reason", "")
        raise _Wrong(f"not valid YAML{where}: {why}") from error
    except (ValueError, OverflowError) as error:  # a Unicode escape that is no character
        raise _Wrong(f"not valid YAML: {error}") from error
    if len(documents) > 1:
        raise _Wrong("it holds several YAML documents, expected one")
    return documents[0] if documents else None


def _documents(events: Iterator[yaml.Event]) -> Iterator[Any]:
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            yield _node(next(events), events, depth=0)


def _node(event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> Any:
    where = f"line {event.start_mark.line + 1}" if event.start_mark else "text"
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
        raise _Wrong(f"{where}: anchors and aliases (& and *) are not allowed; quote the text")
    if (tag := getattr(event, "tag", None)) is not None:
        raise _Wrong(f"{where}: tags (!{tag.rpartition(':')[2]}) are not allowed; quote the text")
    if depth > MAX_DEPTH:
        raise _Wrong(f"{where}: nested deeper than {MAX_DEPTH}")
    if isinstance(event, yaml.ScalarEvent):
        # Escapes of JSON come in pairs for characters beyond 16 bits.
        pairs: bytes = event.value.encode("utf-16-le", "surrogatepass")
        text = pairs.decode("utf-16-le", "surrogatepass")
        return text if event.style else _Plain(text)
    if isinstance(event, yaml.SequenceStartEvent):
        return list(_items(events, yaml.SequenceEndEvent, depth))
    found: dict[str, Any] = {}
    parts = _items(events, yaml.MappingEndEvent, depth)
    for key, value in zip(parts, parts, strict=True):
        if not isinstance(key, str):
            raise _Wrong(f"{where}: a key must be a word, got {shortened(key)}")
        if key in found:
            raise _Wrong(f"{where}: the key {shortened(key)} is there twice")
        found[str(key)] = value
    return found


def _items(events: Iterator[yaml.Event], end: type[yaml.Event], depth: int) -> Iterator[Any]:
    for event in events:
        if isinstance(event, end):
            return
        yield _node(event, events, depth + 1)


def _typed(node: Any, kind: Any) -> Any:
    """Read the scalars of a tree by the type of what it stands for."""
    kinds = list(_alternatives(kind))
    if isinstance(node, _Plain):
        return _scalar(str(node), kinds)
    if isinstance(node, list):
        inner = next((k for k in kinds if get_origin(k) in (tuple, list)), Any)
        args = [a for a in get_args(inner) if a is not Ellipsis] or [Any]
        return [_typed(item, args[min(i, len(args) - 1)]) for i, item in enumerate(node)]
    if isinstance(node, dict):
        section = next((k for k in kinds if _is_section(k)), None)
        mapping = next((k for k in kinds if _is_mapping(k)), None)
        of_all = get_args(mapping)[1] if get_args(mapping) else Any
        fields = section.model_fields if section else {}
        return {
            key: _typed(value, fields[key].annotation if key in fields else of_all)
            for key, value in node.items()
        }
    return node


def _scalar(text: str, kinds: list[Any]) -> Any:
    if text in NULLS and (types.NoneType in kinds or Any in kinds):
        return None
    words = any(kind is str or _is_choice_of_words(kind) for kind in kinds)
    if (words and not {int, float, bool} & {*kinds}) or len(text) > MOST_DIGITS:
        return text
    bare = text.strip()
    if bare in WORDS:
        return WORDS[bare]
    if bare in INFINITE:
        return float(INFINITE[bare])
    if WHOLE.fullmatch(bare):
        return int(bare)
    return float(bare) if REAL.fullmatch(bare) else text


def _alternatives(kind: Any) -> Iterator[Any]:
    if get_origin(kind) is Annotated:
        yield from _alternatives(get_args(kind)[0])
    elif get_origin(kind) in (Union, types.UnionType):
        for one in get_args(kind):
            yield from _alternatives(one)
    else:
        yield kind


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _is_choice_of_words(kind: Any) -> bool:
    return get_origin(kind) is Literal and all(isinstance(word, str) for word in get_args(kind))


def _is_mapping(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping)
