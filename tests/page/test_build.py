"""The built files are what the sources build: only so they may be under version control."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import REPO, programs

BUILT = ("app/page", "clients/js/dist")
SOURCES = ("package.json", "package-lock.json", ".npmrc", "frontend", "clients/js")


PACKED = (".br", ".gz")
# Python has no Brotli of its own; Node has.
UNPACK = """
const { readFileSync } = require('node:fs');
const { brotliDecompressSync, gunzipSync } = require('node:zlib');
const unpack = (path) => (path.endsWith('.br') ? brotliDecompressSync : gunzipSync)(readFileSync(path));
const found = process.argv.slice(1).map((path) => [path, unpack(path).toString('base64')]);
process.stdout.write(JSON.stringify(Object.fromEntries(found)));
"""


def files(root: Path) -> dict[str, bytes]:
    """Files by name. Compressed ones count as what they hold: versions of zlib differ."""
    found = {path: b"" for path in sorted(root.rglob("*")) if path.is_file()}
    packed = [str(path) for path in found if path.suffix in PACKED]
    held: dict[str, str] = {}
    if packed:
        command = [programs.find("node"), "-e", UNPACK, *packed]
        held = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    for path in found:
        inner = held.get(str(path))
        found[path] = path.read_bytes() if inner is None else base64.b64decode(inner)
    return {path.relative_to(root).as_posix(): data for path, data in found.items()}


def test_compressed_files_hold_what_stands_beside_them() -> None:
    kept = files(REPO / "app/page")
    packed = [name for name in kept if name.endswith(PACKED)]
    plain = [name for name in kept if not name.endswith(PACKED)]
    assert sorted(packed) == sorted(name + ending for name in plain for ending in PACKED)
    assert [name for name in packed if kept[name] != kept[name[:-3]]] == []


def test_built_files_are_those_of_the_sources(packages: Path, tmp_path: Path) -> None:
    for name in SOURCES:
        source = packages / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("node_modules", "dist")
            shutil.copytree(source, tmp_path / name, ignore=ignored)
        else:
            shutil.copy(source, tmp_path / name)
    (tmp_path / "node_modules").symlink_to(packages / "node_modules")
    (tmp_path / "app").mkdir()
    done = subprocess.run(
        [programs.find("npm"), "run", "build"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in BUILT:
        built, kept = files(tmp_path / name), files(REPO / name)
        assert built.keys() == kept.keys(), "run `make page` and commit what it changes"
        changed = [path for path in built if built[path] != kept[path]]
        assert changed == [], "run `make page` and commit what it changes"


def test_types_and_parts(packages: Path) -> None:
    for script in ("check", "test"):
        done = subprocess.run(
            [programs.find("npm"), "run", script], cwd=packages, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


PROGRAM = """
import { connect, type HistoryPage, type Message } from '@yujian/realtime';
import { useStream } from '@yujian/realtime/react';

const lab = connect('http://lab.example', { token: async () => null });
export const types: string[] = lab.connected?.supportedTypes ?? [];
export const page: Promise<HistoryPage> = lab.history('status');
export const seen = (): Message<number> | undefined => useStream<number>(lab, 'status');
// @ts-expect-error - types that are not found would allow anything
lab.history('status').then(({ more }) => more.nothing);
"""


@pytest.mark.parametrize("resolution", ["bundler", "nodenext"])
def test_a_program_that_uses_the_client_has_its_types(
    packages: Path, tmp_path: Path, resolution: str
) -> None:
    scope = tmp_path / "node_modules/@yujian"
    scope.mkdir(parents=True)
    (scope / "realtime").symlink_to(packages / "clients/js")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "program.ts").write_text(PROGRAM)
    module = "esnext" if resolution == "bundler" else resolution
    options = f"--module {module} --moduleResolution {resolution} --strict --noEmit --target es2022"
    done = subprocess.run(
        [packages / "node_modules/.bin/tsc", *options.split(), "program.ts"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_the_lock_file_names_no_mirror() -> None:
    lock = (REPO / "package-lock.json").read_text()
    assert [found for found in re.findall(r'"resolved": "([^"]*)"', lock) if "://" in found] == []


def test_the_client_is_small() -> None:
    code = (REPO / "clients/js/dist/index.js").read_bytes()
    assert len(gzip.compress(code, 9)) < 5000
    assert b"import" not in code.split(b"\n", 1)[0]
