"""Damage to JSON, value by value, and likewise to what a checkpoint holds."""

import json
from collections.abc import Sequence
from random import Random

DEEP = 100_000
RAW_JSON = (  # what no JSON writer would write
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "9" * 3000,
    "9" * 6000,
    "-" + "9" * 30,
    "[" * DEEP + "]" * DEEP,
    "[" * 500 + "]" * 500,
    '{"a":' * DEEP + "1" + "}" * DEEP,
    '"\\ud800"',
    '"\\u0000"',
    '"a\\nb"',
    '"\\u001b[2J"',
    "01",
    "'x'",
    "",
)
# fmt: off
ODD_VALUES = (
    None, True, False, -1, 0, 1, 1.5, 2.0**63, 2**31, 2**63 - 1, 2**63, 2**64, 10**400, "", "1",
    "x" * 10_000, "\0", [], {}, [[]], [None], {"id": 1}, [1, 2], "\u202e\n",
)
ODD_KEYS = (-1, 0, 10**30, "", "x" * 5000, "net.stem.conv.weight", "\x1b[2J", True, 1.5, None)
FILE_NAMES = (
    "../../../etc/passwd", "/etc/passwd", "data/../../x", "//etc/passwd", "..\\x", "C:\\x", "~/x",
    "data/svhn", "", ".", "..", "\0", "data/svhn/val/0001/000001.jpg\0.png", "\ud800",
    "data/" + "x" * 300, "data/" + "x/" * 3000, "data/a\nb.jpg", "data/\x1b[2J.jpg",
    "file:///etc/passwd", "/dev/zero", "/proc/self/mem", "data/svhn/./val//0001/x.jpg",
)
# fmt: on
SHARING_A_HASH = [(2**61 - 1) * k for k in range(1, 2000)]


def damaged_json(data: bytes, chance: Random) -> bytes:
    """A JSON document with other values, other types, keys missing or doubled, or other bytes."""
    document = json.loads(data)
    raw: list[str] = []
    for _ in range(chance.choice((1, 1, 2, 3))):
        document = damage_value(document, chance, raw)
    written = json.dumps(document)
    for number, fragment in enumerate(raw):
        written = written.replace(f'"raw {number}"', fragment)
    return encoded(written, chance)


def encoded(written: str, chance: Random) -> bytes:
    """In one case of three with keys doubled, in another encoding, or with zeros at the end."""
    kind = chance.randrange(12)
    if kind == 0 and '"id"' in written:
        written = written.replace('"id"', '"id": 1, "id"', chance.randint(1, 3))
    if kind == 1:
        return b"\xef\xbb\xbf" + written.encode()
    if kind == 2:
        return written.encode("utf-16")
    if kind == 3:
        return written.encode() + b"\0" * chance.randint(1, 9)
    return written.encode()


def copied(value: object) -> object:
    """A copy of dicts and lists; what they hold stays the same."""
    if isinstance(value, dict):
        return {key: copied(each) for key, each in value.items()}
    return [copied(each) for each in value] if isinstance(value, list) else value


def damaged_values(
    content: dict[str, object], chance: Random, odd: Sequence[object]
) -> dict[str, object]:
    """A dict of dicts and lists with other values, `odd` ones among them; each key as likely."""
    content = copied(content)
    for _ in range(chance.choice((1, 1, 2))):
        key = chance.choice(list(content))
        container, key = chance.choice([(content, key), *places(content[key])[:1000]])
        kind = chance.randrange(6)
        if kind == 0 and len(content) > 1:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[chance.choice(ODD_KEYS)] = container[key]
        else:
            container[key] = chance.choice((*odd, *ODD_VALUES))
    return content


def places(value: object) -> list[tuple[object, object]]:
    """Every (container, key) in a document; each container once."""
    found = []
    waiting, seen = [value], set()
    while waiting:
        container = waiting.pop()
        if isinstance(container, dict | list) and id(container) not in seen:
            seen.add(id(container))
            keys = container if isinstance(container, dict) else range(len(container))
            found += [(container, key) for key in keys]
            waiting += [container[key] for key in keys]
    return found


def damage_value(document: object, chance: Random, raw: list[str]) -> object:
    """The document, changed in one place; text that is no JSON goes to `raw`, for later."""
    everywhere = places(document)
    if not everywhere or chance.random() < 0.02:
        return chance.choice(ODD_VALUES)
    container, key = chance.choice(everywhere)
    kind = chance.randrange(7)
    if kind == 0:
        del container[key]
    elif kind == 1:
        container[key] = chance.choice(ODD_VALUES)
    elif kind == 2:
        raw.append(chance.choice(RAW_JSON))
        container[key] = f"raw {len(raw) - 1}"
    elif kind == 3:
        named = [place for place in everywhere if place[1] == "file_name"] or [(container, key)]
        container, key = chance.choice(named)
        container[key] = chance.choice(FILE_NAMES)
    elif kind == 4:
        other, other_key = chance.choice(everywhere)
        container[key] = json.loads(json.dumps(other[other_key]))
    elif kind == 5 and isinstance(container, list):
        container.insert(key, json.loads(json.dumps(container[key])))
    elif kind == 5:
        container["\x1b[2J" + "k" * chance.choice((1, 5000))] = container.pop(key)
    else:
        container[key] = [{"id": number} for number in SHARING_A_HASH]
    return document
