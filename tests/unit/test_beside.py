"""Files beside a model: found, and refused when they are not the ones it was exported with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.beside import Beside, entry, names_file
from pipeline.codecs.settings import Settings
from pipeline.errors import ContractError
from tests.contracts import tensor_contract

CONTENT = b"a language model"
GOOD = entry("lm.bin", CONTENT)


def settings(value: Any, beside: Beside) -> Settings:
    return Settings(tensor_contract(settings={"language_model": value}), "head", beside)


def test_a_file_in_the_models_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "lm.bin").write_bytes(CONTENT)
    assert settings(GOOD, Beside(tmp_path)).file("language_model") == CONTENT


def test_a_file_that_is_yet_to_be_put_there_goes_before(tmp_path: Path) -> None:
    (tmp_path / "lm.bin").write_bytes(b"the old one")
    elsewhere = tmp_path / "trained.bin"
    elsewhere.write_bytes(CONTENT)
    assert settings(GOOD, Beside(tmp_path, {"lm.bin": elsewhere})).file("language_model") == CONTENT


def test_none_is_no_file(tmp_path: Path) -> None:
    assert settings(None, Beside(tmp_path)).file("language_model") is None
    assert Settings(tensor_contract(), "head").file("language_model") is None


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"head tensor: setting 'language_model': needs the file 'lm\.bin'"):
        settings(GOOD, Beside()).file("language_model")
    with pytest.raises(ContractError, match=r"lm\.bin cannot be read \(No such file or directory\)"):
        settings(GOOD, Beside(tmp_path)).file("language_model")
    (tmp_path / "lm.bin").write_bytes(CONTENT + b"!")
    with pytest.raises(ContractError, match=r"lm\.bin is not the file that the model was exported with"):
        settings(GOOD, Beside(tmp_path)).file("language_model")


@pytest.mark.parametrize(
    "value",
    [
        "lm.bin",
        {"file": "lm.bin"},
        GOOD | {"size": 3},
        GOOD | {"file": "../lm.bin"},
        GOOD | {"file": "/etc/passwd"},
        GOOD | {"file": ".."},
        GOOD | {"file": ""},
        GOOD | {"sha256": "0" * 63},
        GOOD | {"sha256": None},
    ],
)
def test_only_a_plain_name_with_a_digest_names_a_file(value: Any, tmp_path: Path) -> None:
    assert not names_file(value)
    with pytest.raises(ContractError, match=r"setting 'language_model' is .*: expected a file beside the model"):
        settings(value, Beside(tmp_path)).file("language_model")
