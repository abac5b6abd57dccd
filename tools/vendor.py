"""Fetches the JavaScript of the report's charts: Observable Plot and the D3 it needs, with their licences.

`python -m tools.vendor` takes the versions pinned here from the npm registry (with npm's own client,
which checks their integrity), replaces the files in `profiler/report/html/assets/vendor/` and writes
`vendor.json` there: name, version, licence and SHA-256 of each. A test compares the files with it.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from profiler.report.html.page import ASSETS

VENDOR = ASSETS / "vendor"


@dataclass(frozen=True, slots=True)
class Library:
    """One published package, and the file of it that goes into the page."""

    package: str
    version: str
    member: str
    file: str


LIBRARIES = (
    Library("d3", "7.9.2", "package/dist/d3.min.js", "d3.min.js"),
    Library("@observablehq/plot", "0.6.17", "package/dist/plot.umd.min.js", "plot.umd.min.js"),
)
"""In the order in which they are loaded."""


def refresh() -> Iterator[dict[str, str]]:
    """Replace the vendored files; yields an entry of `vendor.json` for each."""
    VENDOR.mkdir(parents=True, exist_ok=True)
    for library in LIBRARIES:
        with tempfile.TemporaryDirectory() as scratch:
            command = ["npm", "pack", "--silent", f"{library.package}@{library.version}"]
            packed = subprocess.run(command, cwd=scratch, check=True, capture_output=True, text=True)
            with tarfile.open(Path(scratch) / packed.stdout.split()[-1]) as archive:
                source = _member(archive, library.member)
                licence = _member(archive, "package/LICENSE")
                about = json.loads(_member(archive, "package/package.json"))
        (VENDOR / library.file).write_bytes(source)
        (VENDOR / f"{library.file}.LICENSE").write_bytes(licence)
        yield {
            "package": library.package,
            "version": library.version,
            "licence": about["license"],
            "file": library.file,
            "sha256": hashlib.sha256(source).hexdigest(),
        }


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise FileNotFoundError(name)
    return file.read()


if __name__ == "__main__":
    found = list(refresh())
    (VENDOR / "vendor.json").write_text(json.dumps(found, indent=2) + "\n")
    for entry in found:
        print(f"{entry['file']}: {entry['package']} {entry['version']}, sha256 {entry['sha256']}")
