"""The image where no container engine is: the Dockerfile's own steps in an empty environment, and what it starts."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.broker import Broker
from tests.kafka.harness import eventually, make_topics, produce
from tests.kafka.reading import Reader
from tests.kafka.watching import DEPLOY

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
PROJECT = DEPLOY.parent


class Image:
    """What ``deploy/Dockerfile`` says, carried out below ``root`` in place of ``/``."""

    def __init__(self, root: Path) -> None:
        self.root, self.source = root, root / "src"
        text = re.sub(r"\\\n\s*", " ", (DEPLOY / "Dockerfile").read_text())
        steps = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
        self.stages: list[list[tuple[str, str]]] = []
        for word, rest in steps:
            if word == "FROM":
                self.stages.append([])
            elif self.stages:
                self.stages[-1].append((word, rest))
        self.env = {
            key: value
            for word, rest in self.stages[-1]
            if word == "ENV"
            for key, value in (pair.split("=", 1) for pair in shlex.split(rest))
        }

    def inside(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def said(self, word: str) -> str:
        """The one instruction of this name in the last stage."""
        (rest,) = (rest for w, rest in self.stages[-1] if w == word)
        return rest

    def build(self, python: str) -> None:
        """The steps of all stages, in order."""
        self.source.mkdir()
        for number, stage in enumerate(self.stages):
            for word, rest in stage:
                if word == "COPY" and "--from=" not in rest:
                    *names, target = rest.split()
                    self._copy(
                        names, self.source / target if number == 0 else self.inside(target), target.endswith("/")
                    )
                elif word == "RUN":
                    self._run(rest, python)

    def _copy(self, names: list[str], target: Path, into: bool) -> None:
        ignored = shutil.ignore_patterns(*(PROJECT / ".dockerignore").read_text().replace("**/", "").split())
        for name in names:
            place = target / Path(name).name if into else target
            if (PROJECT / name).is_dir():
                shutil.copytree(PROJECT / name, place, ignore=ignored, dirs_exist_ok=True)
            else:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(PROJECT / name, place)

    def _run(self, command: str, python: str) -> None:
        """In an environment with nothing but a PATH whose python3 is the image's."""
        tools = self.root / "tools"
        tools.mkdir(exist_ok=True)
        (tools / "python3").symlink_to(python)
        words = [str(self.inside(w)) if w.startswith("/") else w for w in shlex.split(command)]
        done = subprocess.run(
            words,
            cwd=self.source,
            env={"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(self.root)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]

    def environment(self, **more: str) -> dict[str, str]:
        """As a container would have it, its paths below ``root``."""
        path = ":".join(str(self.inside(p)) if p.startswith("/opt/") else p for p in self.env["PATH"].split(":"))
        return {**self.env, "PATH": path, **more}


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Built where any user may read it: pytest's own folders are one user's."""
    root = Path(tempfile.mkdtemp(prefix="eddy-image-"))
    root.chmod(0o755)
    try:
        it = Image(root)
        it.build(_python())
        yield it
    finally:
        shutil.rmtree(root)


def _python() -> str:
    """An interpreter that any user may start, where the machine has one with venv."""
    system = "/usr/bin/python3"
    check = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
    if os.access(system, os.X_OK) and subprocess.run([system, "-c", check], check=False).returncode == 0:
        return system
    return sys.executable


def _user(image: Image) -> dict[str, int]:
    """The image's user, where this test may become another one and the interpreter lets it in."""
    uid, gid = map(int, image.said("USER").split(":"))
    return {"user": uid, "group": gid} if os.geteuid() == 0 and _python() == "/usr/bin/python3" else {}


def test_it_brings_no_torch_and_no_compiler(image: Image) -> None:
    (packages,) = image.inside("/opt/eddy/lib").glob("python3*/site-packages")
    there = {p.name for p in packages.iterdir()}
    assert {"onnxruntime", "aiokafka", "pipeline", "services"} <= there
    assert not there & {"torch", "triton", "pytest", "matplotlib"}


def test_its_user_is_not_root(image: Image) -> None:
    assert int(image.said("USER").split(":")[0]) > 0


def test_it_serves_a_shipped_model_until_it_is_told_to_end(
    image: Image, broker: Broker, unique: Callable[[str], str], tmp_path: Path
) -> None:
    topics = make_topics(broker.address, unique, 2)
    models = image.inside("/opt/eddy/models")
    home = image.inside("/tmp")
    home.mkdir()
    home.chmod(0o1777)
    port = "19808"
    environment = image.environment(
        EDDY_BOOTSTRAP_SERVERS=broker.address,
        EDDY_MODEL=str(models / "python-reference"),
        EDDY_INPUT=topics.input,
        EDDY_OUTPUT=topics.output,
        EDDY_HTTP_PORT=port,
        HOME=str(home),
        TMPDIR=str(home),
    )
    entry = [*_json(image.said("ENTRYPOINT")), *_json(image.said("CMD"))]
    program = shutil.which(entry[0], path=environment["PATH"])
    assert program is not None
    assert program.startswith(str(image.root))
    check = _json(image.said("HEALTHCHECK").split("CMD", 1)[1])
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [program, *entry[1:]], env=environment, cwd="/", stdout=out, stderr=out, **_user(image)
        )
    try:

        def healthy() -> bool:
            assert process.poll() is None, log.read_text()
            python = shutil.which(check[0], path=environment["PATH"])
            return (
                subprocess.run([str(python), *check[1:]], env=environment, check=False, capture_output=True).returncode
                == 0
            )

        eventually(healthy, 60, "its own health check passes")
        produce(broker.address, topics.input, [(b"k", b"The for statement ", [("eddy-max-steps", b"5")])])
        reader = Reader(topics.address, topics.output)
        reader.until(lambda records: any(r.header("eddy-finish") for r in records), 60)
        reader.close()
        process.terminate()
        assert process.wait(30) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()


def _json(text: str) -> list[str]:
    return [str(word) for word in json.loads(text)]
