"""``python -m export.data`` (``make data``): brings the Debian packages of every data set into the cache."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import export.data
from export.data.cache import cache_folder, debian_package
from pipeline.errors import UserError


def packages() -> dict[str, tuple[str, ...]]:
    """Data module -> the Debian packages it reads, as its ``PACKAGES`` says; modules without any are left out."""
    found = {}
    for module in pkgutil.iter_modules(export.data.__path__):
        if module.name != "__main__":
            listed = getattr(importlib.import_module(f"export.data.{module.name}"), "PACKAGES", ())
            if listed:
                found[module.name] = tuple(listed)
    return found


def main() -> int:
    """One line a package: name, version, files, size, for what. One that cannot be had: exit code 2."""
    try:
        print(f"data in {cache_folder() / 'data'}")
        for data, names in packages().items():
            for name in names:
                package = debian_package(name)
                files = [f for f in package.root.rglob("*") if f.is_file() and not f.is_symlink()]
                size = sum(f.stat().st_size for f in files) / 1e6
                print(f"{name:<28} {package.version:<24} {len(files):>5} files {size:>7.1f} MB  for {data}", flush=True)
    except UserError as error:
        print(f"make data: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
