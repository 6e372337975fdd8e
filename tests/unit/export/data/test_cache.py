"""Debian packages in the cache, by the machine's real apt."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from export.data.cache import cache_folder, debian, debian_package
from pipeline.errors import ConfigError

SMALL = "hostname"  # a few kB, in every Debian and Ubuntu
ASK = f"from export.data.cache import debian; print(debian({SMALL!r}))"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with nothing in it. By hand a machine without apt may skip what needs it; CI may not."""
    monkeypatch.setenv("EDDY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `apt-get update` brought once, from nothing."""
    if shutil.which("apt-get") is None and not os.environ.get("CI"):
        pytest.skip("no apt-get on this machine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDDY_CACHE", str(tmp_path_factory.mktemp("lists")))
        debian(SMALL)
        return cache_folder() / "data" / "apt"


@pytest.fixture
def apt(cache: Path, lists: Path) -> Path:
    shutil.copytree(lists, cache / "data" / "apt")
    return cache


def test_package_is_downloaded_unpacked_and_kept_with_its_version(apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = debian(SMALL)
    assert (root / "usr/share/doc" / SMALL / "copyright").is_file()
    assert root.is_relative_to(apt / "data")
    package = debian_package(SMALL)
    assert package.root == root
    assert package.version[0].isdigit()
    monkeypatch.setenv("PATH", "")  # what is there needs neither apt nor a network
    assert debian(SMALL) == root


def test_two_processes_that_ask_at_once_get_one_whole_package(apt: Path) -> None:
    asking = [subprocess.Popen([sys.executable, "-c", ASK], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {p.communicate(timeout=240)[0].strip() for p in asking}
    assert [p.returncode for p in asking] == [0, 0]
    (root,) = answers
    assert (Path(root) / "usr/share/doc" / SMALL / "copyright").is_file()
    kept = sorted(p.name for p in (apt / "data" / "debian").iterdir())
    assert kept == [".lock", SMALL], "nothing half fetched stays behind"


def test_old_lists_are_renewed_before_a_package_is_called_unknown(apt: Path) -> None:
    old = apt / "data" / "apt" / "lists"
    shutil.rmtree(old)
    old.mkdir()
    (old / "example.invalid_dists_old_main_binary-amd64_Packages").write_text("")
    assert debian(SMALL).is_dir()


def test_unknown_package(apt: Path) -> None:
    with pytest.raises(ConfigError, match="no-such-package-x: this machine's package sources have none of that name"):
        debian("no-such-package-x")
    assert sorted(p.name for p in (apt / "data" / "debian").iterdir()) == [".lock"]


def test_no_network(apt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable = tmp_path / "apt.conf"
    unreachable.write_text('Acquire::http::Proxy "http://127.0.0.1:9";\nAcquire::https::Proxy "http://127.0.0.1:9";\n')
    monkeypatch.setenv("APT_CONFIG", str(unreachable))
    with pytest.raises(ConfigError, match=f"{SMALL}: the package archive cannot be reached"):
        debian(SMALL)


def test_no_apt_on_this_machine(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"there is no apt-get here.*make data"):
        debian(SMALL)


def test_no_place_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDDY_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"cannot keep data in .*set EDDY_CACHE"):
        debian(SMALL)


def test_disk_is_full(apt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    real = shutil.which("dpkg-deb")
    (tools / "dpkg-deb").write_text(f"#!/bin/sh\nulimit -f 1\ntrap '' XFSZ\nexec {real} \"$@\"\n")
    (tools / "dpkg-deb").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    with pytest.raises(ConfigError, match=f"{SMALL}: no room in .*set EDDY_CACHE"):
        debian(SMALL)
    assert sorted(p.name for p in (apt / "data" / "debian").iterdir()) == [".lock"], "nothing half unpacked stays"


def test_damaged_record_is_named(cache: Path) -> None:
    folder = cache / "data" / "debian" / SMALL
    folder.mkdir(parents=True)
    (folder / "package.json").write_text("{")
    with pytest.raises(ConfigError, match=r"package\.json: .*; delete "):
        debian(SMALL)


def test_name_that_is_no_package(cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"'\.\./etc' cannot be the name"):
        debian("../etc")


def test_place_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDDY_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("EDDY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "eddy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "eddy"


def test_make_data_lists_what_it_brought(apt: Path) -> None:
    folder = apt / "data" / "debian"
    for name in {name for names in _packages().values() for name in names}:
        (folder / name / "root").mkdir(parents=True)
        (folder / name / "root" / "file").write_text("x")
        (folder / name / "package.json").write_text(json.dumps({"name": name, "version": "1.2-3", "source": name}))
    command = [sys.executable, "-m", "export.data"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for data, names in _packages().items():
        for name in names:
            assert any(line.startswith(f"{name} ") and "1.2-3" in line and line.endswith(data) for line in lines)


def _packages() -> dict[str, tuple[str, ...]]:
    from export.data.__main__ import packages

    return packages()
