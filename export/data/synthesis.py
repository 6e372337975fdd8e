"""Speech that espeak-ng makes: any text in a hundred voices, at 8 kHz, the same bytes for the same request.

The command is taken from PATH where it is installed, else from Debian's packages in the cache, run with their own
libraries. What was spoken once stays in the cache under a digest of the requests and of espeak-ng's version.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import wave
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from export.data.cache import cache_folder, debian, exclusive
from export.data.prompts import RATE
from pipeline.errors import ConfigError

_NEEDED = "espeak-ng libespeak-ng1 espeak-ng-data libsonic0 libpcaudio0"
# libpcaudio0 is linked to PulseAudio although nothing is played here; with these its chain of libraries is closed,
# as far as apt itself does not need them too.
_LINKED = (
    "libpulse0 libasound2 libasyncns0 libsndfile1 libflac12 libmp3lame0 libmpg123-0 libogg0 libopus0 libvorbis0a"
    " libvorbisenc2 libdbus-1-3 libx11-6 libx11-xcb1 libxcb1 libxau6 libxdmcp6 libbsd0 libmd0"
)
PACKAGES = () if shutil.which("espeak-ng") else tuple(f"{_NEEDED} {_LINKED}".split())
SOURCE = "synthetic voices (espeak-ng)"
LICENCE = "made by espeak-ng (a GPL-3.0 tool; its output is the user's)"
WORKERS = 2
ACCENTS = ("en-us", "en-us", "en-gb", "en-gb-x-rp", "en-us-nyc", "en-029", "en-gb-x-gbcwmd", "en-gb-scotland")
WOMEN = "f1 f2 f3 f4 Alicia Andrea Annie anika aunty belinda grandma linda shelby steph steph3"
MEN = (
    "m1 m2 m3 m4 m5 m6 m8 Alex Andy Denis Gene Gene2 Jacky Lee Marco Mario Mike adam antonio benjamin boris caleb david"
    " ed edward edward2 gustave grandpa iven iven2 john marcelo max michel miguel norbert pablo paul pedro quincy rob"
    " robert sandro travis victor zac klatt klatt4"
)
OTHERS = "f5 steph2 m7 Michael"
"""Voices kept for development: nothing of them is trained on."""


@dataclass(frozen=True, slots=True)
class Request:
    """One utterance: its words, a voice with variant (``en-us+f3``), words a minute, pitch from 0 to 99."""

    text: str
    voice: str
    speed: int
    pitch: int


def cast(
    texts: Sequence[str], seed: int, women: float | None = 0.6, speeds: tuple[int, int] = (125, 200)
) -> list[Request]:
    """A voice, speed and pitch for each text, drawn from the seed; ``women``: their share, None: ``OTHERS`` speak.

    ``speeds``: words a minute, least and most.
    """
    rng = np.random.default_rng([seed, 71])
    requests = []
    for text in texts:
        variants = (OTHERS if women is None else WOMEN if rng.random() < women else MEN).split()
        voice = f"{ACCENTS[rng.integers(len(ACCENTS))]}+{variants[rng.integers(len(variants))]}"
        requests.append(Request(text, voice, int(rng.integers(*speeds)), int(rng.integers(25, 80))))
    return requests


def speak(requests: Sequence[Request]) -> list[NDArray[np.int16]]:
    """Samples ``[n]`` at ``RATE`` for each request. Raises ConfigError when espeak-ng is missing or fails."""
    listed = json.dumps([_version(), *map(astuple, requests)])
    folder = cache_folder() / "data" / "synthesis"
    file = folder / f"{hashlib.sha256(listed.encode()).hexdigest()[:24]}.npz"
    if not file.exists():
        with exclusive(folder):
            if not file.exists():
                with ThreadPoolExecutor(WORKERS) as pool:
                    heard = pool.map(_speak, requests)
                    sounds = list(tqdm(heard, "speak", len(requests), unit="utterance", disable=None))
                beside = file.with_suffix(".tmp")
                with beside.open("wb") as out:
                    np.savez(out, samples=np.concatenate(sounds), lengths=np.array([len(s) for s in sounds]))
                os.replace(beside, file)
    try:
        with np.load(file) as kept:
            found: list[NDArray[np.int16]] = np.split(kept["samples"], np.cumsum(kept["lengths"])[:-1])
            return found
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{file}: {error}; expected samples and lengths; delete it to have it made again") from None


def _speak(request: Request) -> NDArray[np.int16]:
    words = ["-v", request.voice, "-s", str(request.speed), "-p", str(request.pitch), "--stdout", "--stdin"]
    data = _run(words, request.text)
    try:
        with wave.open(io.BytesIO(data), "rb") as sound:
            rate = sound.getframerate()
    except (wave.Error, EOFError) as error:
        raise ConfigError(f"espeak-ng -v {request.voice} on {request.text[:60]!r}: no WAV but {error}") from None
    # On a pipe the header's length is not known to espeak-ng: all that follows the 44 bytes of the header are samples.
    return resample(np.frombuffer(data[44 : len(data) - len(data) % 2], "<i2"), rate, RATE)


def resample(pcm: NDArray[np.int16], rate: int, wanted: int) -> NDArray[np.int16]:
    """Band-limited change of rate, over the whole signal: a cut, or zeros, in its spectrum."""
    if rate == wanted or not len(pcm):
        return pcm.astype(np.int16)
    count = round(len(pcm) * wanted / rate)
    # A length of small factors; a prime one would take the transform seconds.
    block = rate // np.gcd(rate, wanted) * 8
    whole = -(-len(pcm) // block) * block
    size = whole * wanted // rate
    spectrum = np.fft.rfft(np.pad(pcm.astype(np.float64), (0, whole - len(pcm))))
    kept = np.zeros(size // 2 + 1, complex)
    bins = min(len(kept), len(spectrum))
    kept[:bins] = spectrum[:bins]
    signal = np.fft.irfft(kept, size)[:count] * (size / whole)
    clipped: NDArray[np.int16] = np.clip(np.rint(signal), -32768, 32767).astype(np.int16)
    return clipped


@cache
def _command() -> tuple[str, tuple[tuple[str, str], ...]]:
    """espeak-ng and what its environment must have."""
    if found := shutil.which("espeak-ng"):
        return found, ()
    roots = {name: debian(name) for name in PACKAGES}
    folders = sorted({str(f.parent) for root in roots.values() for f in root.rglob("*.so*")})
    data = next(iter(roots["espeak-ng-data"].rglob("phontab")), None)
    if data is None:
        raise ConfigError(f"{roots['espeak-ng-data']}: no phontab in it; expected espeak-ng's data")
    path = str(roots["espeak-ng"] / "usr/bin/espeak-ng")
    return path, (("LD_LIBRARY_PATH", ":".join(folders)), ("ESPEAK_DATA_PATH", str(data.parent.parent)))


def _run(words: Sequence[str], text: str = "") -> bytes:
    path, environment = _command()
    done = subprocess.run(
        [path, *words],
        input=text.encode(),
        env={**os.environ, **dict(environment)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    if done.returncode or b"rror" in done.stderr[:200]:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise ConfigError(f"{path} {' '.join(words)}: {said[0]}; install espeak-ng with the system's package manager")
    return done.stdout


@cache
def _version() -> str:
    return _run(["--version"]).decode(errors="replace").split("Data at")[0].strip()


def phonemes(words: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The sounds of each word by itself in an American voice, by espeak-ng's names for them, without their stress.

    Raises ConfigError when espeak-ng does not answer word by word.
    """
    known: dict[str, tuple[str, ...]] = {}
    for at in range(0, len(words), 2000):
        some = words[at : at + 2000]
        said = _run(["-q", "-x", "--sep=_", "-v", "en-us", "--stdin"], "\n\n".join(some)).decode(errors="replace")
        lines = said.strip().splitlines()
        if len(lines) != len(some):
            raise ConfigError(f"espeak-ng -x: {len(lines)} lines for {len(some)} words; expected one each")
        for word, line in zip(some, lines):
            known[word] = tuple(x for x in re.split(r"[_\s|]+", re.sub(r"[',!;%=]", "", line)) if x)
    return known
