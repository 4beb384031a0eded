"""Hostile variations of files, drawn from a seed: bytes, JSON, YAML, names, links."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

ESCAPING = ("../victim/secret.txt", "../victim", "/etc/passwd", "..\\victim", "", ".", "a/../../victim/secret.txt")
"""Names that lead out of a folder. The sandbox lays a folder ``victim`` beside the one that is attacked."""

VALUES: tuple[Any, ...] = (
    *ESCAPING,
    None,
    True,
    False,
    0,
    -1,
    2,
    0.0,
    -0.5,
    10**9,
    10**30,
    -(2**63),
    1e-320,
    float("nan"),
    float("inf"),
    float("-inf"),
    "a" * 300,
    "b" * 200_000,
    "\ud800",
    "\x00",
    "\x1b[31mred\x1b[0m",
    "x\n::add-mask::x",
    "x\r# forged",
    "\u202egnp.exe",
    "</script><script>alert(1)</script>",
    "${{ secrets }}",
    "%n%s%x",
    [],
    {},
    [[]],
    [None],
    {"": {}},
    ["x"] * 20_000,
    {"auto_map": {"AutoConfig": "evil.Evil"}},
)

YAML_PIECES = (
    "&a [*a, *a]",
    "{<<: {a: 1}}",
    "!!python/object/apply:os.system ['touch ../victim/owned']",
    "!!int x",
    "!!bool maybe",
    "!!binary '*'",
    "2024-13-45",
    "12:30:45",
    "0o17",
    "1" * 5_000,
    "[" * 3_000,
    "{a: " * 3_000,
    ".nan",
    ".inf",
    "1e400",
    "'\\ud800'",
    '"\\x00"',
    "? [a]\n: b",
    "- - - -",
    "%YAML 9.9",
    "---\n---",
    "\t",
    "~",
)


def bomb(width: int = 9, depth: int = 9) -> str:
    """An alias bomb: ``width ** depth`` values in some hundred bytes."""
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"a{step}: &a{step} [{', '.join([f'*a{step - 1}'] * width)}]" for step in range(1, depth)]
    return "\n".join(lines) + "\n"


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    """Flip bits, cut, repeat, blank or swap parts; never the same bytes."""
    data = bytearray(content)
    if not data:
        return b"\x00"
    place = draw.randrange(len(data))
    length = min(len(data) - place, draw.choice((1, 4, 64, 4096)))
    kind = draw.randrange(7)
    if kind <= 1:
        for _ in range(draw.choice((1, 1, 3, 20))):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == 2:
        del data[place:]
    elif kind == 3:
        data[place:place] = data[place : place + length] * draw.choice((1, 50))
    elif kind == 4:
        data[place : place + length] = bytes(length)
    elif kind == 5:
        data[place : place + length] = b"\xff" * length
    else:
        data += draw.randbytes(draw.choice((1, 1000)))
    return bytes(data) if bytes(data) != content else bytes(data) + b"\x00"


def mutate_json(content: bytes, draw: random.Random) -> bytes:
    """Replace, remove, add or double one value of a JSON document, anywhere in it."""
    try:
        document = json.loads(content)
    except ValueError:
        return mutate_bytes(content, draw)
    kind = draw.randrange(10)
    if kind == 0:
        depth = draw.choice((200, 3_000, 100_000))
        return b"[" * depth + b"]" * depth
    if kind == 1:
        return b'{"a": ' * 3_000 + b"1" + b"}" * 3_000
    holders = _holders(document)
    if not holders:
        return json.dumps(draw.choice(VALUES)).encode()
    holder = draw.choice(holders)
    key = draw.choice(list(holder)) if isinstance(holder, dict) else draw.randrange(len(holder))
    if kind == 2:
        del holder[key]
    elif kind == 3 and isinstance(holder, dict):
        holder[draw.choice(("auto_map", "extra", "__class__", "file", "a" * 300))] = draw.choice(VALUES)
    elif kind == 4:
        other = draw.choice(holders)
        holder[key] = json.loads(json.dumps(other)) if len(json.dumps(other)) < 100_000 else None
    elif kind == 5 and isinstance(holder[key], int | float):
        holder[key] = holder[key] * draw.choice((-1, 2, 10, 1e6, 1e400)) + draw.choice((0, 1))
    else:
        holder[key] = draw.choice(VALUES)
    text = json.dumps(document)
    if kind == 6:
        text = text.replace("NaN", "1e400").replace("true", "1e999", 1)
    if kind == 7 and isinstance(document, dict) and document:
        name = json.dumps(draw.choice(list(document)))
        text = "{" + name + ": null, " + text.lstrip()[1:]
    return text.encode("utf-8", "surrogatepass")


def _holders(document: Any) -> list[Any]:
    """Every non-empty object and list in a document."""
    found, waiting = [], [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list) and value:
            found.append(value)
            waiting += list(value.values()) if isinstance(value, dict) else value[:200]
    return found


def mutate_yaml(content: bytes, draw: random.Random) -> bytes:
    """Replace one value of a block-style YAML document by a hostile piece, or change its lines."""
    lines = content.decode().splitlines()
    place = draw.randrange(len(lines))
    kind = draw.randrange(7)
    if kind == 0:
        return (bomb(draw.choice((2, 9)), 9) + content.decode()).encode()
    if kind == 1:
        return mutate_bytes(content, draw)
    if kind == 2:
        lines.insert(place, lines[draw.randrange(len(lines))])
    elif kind == 3:
        del lines[place]
    elif kind == 4:
        lines[place] = lines[place].replace(" ", "", draw.randrange(3))
    else:
        piece = draw.choice((*YAML_PIECES, *(json.dumps(value) for value in VALUES)))
        head, colon, _ = lines[place].partition(":")
        lines[place] = f"{head}: {piece}" if colon else f"- {piece}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def mutate_names(folder: Path, draw: random.Random) -> str:
    """Rename, remove, replace (by a folder, a link, a FIFO, another file) or add a file. Says what it did."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path, other = draw.choice(files), draw.choice(files)
    victim = folder.parent / "victim"
    kind = draw.choice(("remove", "folder", "link", "link folder", "fifo", "swap", "add", "rename", "empty", "device"))
    if kind == "add":
        name = draw.choice(("evil.py", "x" * 200, "new\nline", "__init__.py", "pytorch_model.bin", ".hidden", "é"))
        (folder / name).write_bytes(b"raise SystemExit('ran')\n")
        return f"add {name!r}"
    if kind == "swap":
        path.write_bytes(other.read_bytes())
        return f"{path.name} = {other.name}" if path != other else "nothing"
    if kind == "rename":
        path.rename(path.with_name(draw.choice(("x", f"{path.name}.bak", f"{path.name} "))))
        return f"rename {path.name}"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(victim / "secret.txt")
    elif kind == "link folder":
        path.symlink_to(victim, target_is_directory=True)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "empty":
        path.touch()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    return f"{kind} {path.name}"


def mutate_folder(folder: Path, draw: random.Random) -> str:
    """One hostile change somewhere in ``folder``. Says what it did, or "nothing" where the content is as before."""
    if draw.random() < 0.25:
        return mutate_names(folder, draw)
    path = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    change: Callable[[bytes, random.Random], bytes] = mutate_bytes
    if path.suffix in (".json", ".jsonl", "") and draw.random() < 0.8:
        change = mutate_json
    elif path.suffix in (".yaml", ".yml"):
        change = mutate_yaml
    before = path.read_bytes()
    after = change(before, draw)
    path.chmod(0o644)
    path.write_bytes(after)
    return f"{change.__name__} {path.relative_to(folder)}" if after != before else "nothing"
