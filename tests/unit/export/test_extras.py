"""What is missing is named by its package, and the hint works from where Eddy came."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def said(folder: Path, code: str, clone: Path, direct: dict[str, object] | None) -> str:
    """What a Python prints that has Eddy installed as ``direct`` says, run in ``folder``."""
    site = clone / "site"
    info = site / "eddy_streams-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: eddy-streams\nVersion: 0.1.0\n")
    if direct is not None:
        (info / "direct_url.json").write_text(json.dumps(direct))
    run = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])},
    )
    return run.stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "a clone"
    folder.mkdir()
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.mark.parametrize(
    ("inside", "editable", "ending"),
    [
        (True, True, "install -e '.[media]'"),
        (True, False, "install '.[media]'"),
        (False, True, "install -e '{clone}[media]'"),
        (False, False, "install '{clone}[media]'"),
    ],
)
def test_an_extra_comes_from_the_clone_that_eddy_came_from(
    clone: Path, tmp_path: Path, inside: bool, editable: bool, ending: str
) -> None:
    direct = {"url": clone.as_uri(), "dir_info": {"editable": True} if editable else {}}
    code = "from export.extras import install; print(install('media'))"
    hint = said(clone if inside else tmp_path, code, clone, direct)
    assert hint.endswith(ending.format(clone=clone))
    first = hint.split(" install")[0]
    assert first in ("pip", f"{sys.executable} -m pip"), "any other pip would install it somewhere else"


@pytest.mark.parametrize("direct", [None, {"url": "file:///no/such/clone", "dir_info": {}}])
def test_without_a_clone_it_comes_by_eddys_name(clone: Path, direct: dict[str, object] | None) -> None:
    hint = said(clone, "from export.extras import install; print(install('media'))", clone, direct)
    assert hint.endswith("install 'eddy-streams[media]'")


def test_the_package_is_named_and_not_its_module(clone: Path) -> None:
    code = (
        "import importlib.util as u; find = u.find_spec; u.find_spec = lambda n: None if n == 'sklearn' else find(n)\n"
        "from export.extras import need\n"
        "try: need('train', 'scikit-learn', 'numpy')\n"
        "except Exception as error: print(error)"
    )
    assert said(clone, code, clone, None).startswith("eddy train needs scikit-learn: ")
