"""Packages that Eddy does without until a command needs them: whether they are there, and how they come."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pipeline.errors import ConfigError

NAME = "eddy-streams"
MODULES = {"scikit-learn": "sklearn", "lingua-language-detector": "lingua"}
"""Packages whose module has another name."""
ROOT = Path(__file__).parents[1]


def need(command: str, *packages: str, extra: str = "export") -> None:
    """Raises ConfigError that names the packages and the extra, in place of an ImportError deep inside."""
    missing = [p for p in packages if find_spec(MODULES.get(p, p)) is None]
    if missing:
        raise ConfigError(f"eddy {command} needs {' and '.join(missing)}: {install(extra)}")


def install(extra: str) -> str:
    """The command line that brings an extra to the Python that runs, from where Eddy itself came."""
    beside = shutil.which("pip", path=str(Path(sys.executable).parent))
    # A pip of another environment would be the first one to be found.
    right = beside is not None and shutil.which("pip") == beside
    pip = "pip" if right else f"{shlex.quote(sys.executable)} -m pip"
    source, editable = _source()
    if source is None:
        return f"{pip} install '{NAME}[{extra}]'"
    place = "." if source == Path.cwd() else str(source)
    return f"{pip} install {'-e ' if editable else ''}{shlex.quote(f'{place}[{extra}]')}"


def _source() -> tuple[Path | None, bool]:
    """The clone that Eddy was installed from or runs in, if it was one and is still there; whether it is editable."""
    try:
        said = distribution(NAME).read_text("direct_url.json")
    except PackageNotFoundError:
        return (ROOT, True) if (ROOT / "pyproject.toml").is_file() else (None, False)
    direct = json.loads(said) if said else {}
    url = urlsplit(direct.get("url", ""))
    folder = Path(url2pathname(url.path))
    if url.scheme != "file" or not (folder / "pyproject.toml").is_file():
        return None, False
    return folder, bool(direct.get("dir_info", {}).get("editable"))
