"""What is heard: words spoken by espeak-ng, and recordings in which they lie among noise."""

import subprocess
import wave
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np


def listed(text: str) -> tuple[str, ...]:
    """Words that stand between spaces."""
    return tuple(text.split())


RATE = 8000  # samples a second
WORDS = ("elman", "left", "right", "stop")  # to be detected
OTHERS = listed(
    "element almond melon woman help lemon lift loft leather laugh deaf theft ring ripe ride "
    "light bright rat root step shop stock top spot store start go yes no up down on off one two "
    "three four five six seven eight nine house music water window morning question computer "
    "hello please open close please-wait good-night thank-you"
)
STRANGE = listed(  # said in no recording to train on
    "elbow letter lost rate rice fright stamp step-back dog bird happy marvin wow sheila visual "
    "forward follow learn tree bed cat zero amazing"
)
ACCENTS = listed("en-us en-gb en-gb-x-rp en-us-nyc en-029 en-gb-scotland")
VOICES = listed(
    "f1 f2 f3 f4 m1 m2 m3 m4 m5 m6 m7 Alex Alicia Andrea Denis Diogo Gene Gene2 Henrique Hugo "
    "Jacky Lee Marco Michael Mike adam anika antonio aunty benjamin boris caleb david ed edward "
    "gustave iven iven2 john kaukovalta klatt2 klatt3 linda marcelo max michel miguel norbert "
    "pablo pedro quincy rob sandro shelby steph steph2 travis zac"
)
HELD_OUT = listed("f5 m8 Andy Annie Mario belinda grandma paul robert victor iven3 steph3")


class Clip(NamedTuple):
    """One word, said once, and its samples without the silence around."""

    word: str
    samples: np.ndarray


class Said(NamedTuple):
    """A word of a recording, and where its samples begin and end."""

    word: str
    start: int
    end: int


def clips(voices: Iterable[str], words: Iterable[str], each: int, seed: int) -> Iterator[Clip]:
    """Each word `each` times by each voice, at various speeds and pitches, with some accent."""
    rng = np.random.default_rng(seed)
    wanted = [
        (word, f"{rng.choice(ACCENTS)}+{voice}", *rng.integers([120, 20], [220, 80]).tolist())
        for voice in voices
        for word in words
        for _ in range(each)
    ]
    with ThreadPoolExecutor() as threads:
        yield from threads.map(lambda one: Clip(one[0], say(*one)), wanted)


def say(word: str, voice: str, speed: int, pitch: int) -> np.ndarray:
    """A word by espeak-ng, whose samples stand behind a header of 44 bytes, 22050 a second."""
    text = word.replace("-", " ")
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", text]
    said = subprocess.run(command, check=True, capture_output=True).stdout
    samples = resample(np.frombuffer(said, "<i2", offset=44) / 32768, 22050)
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1]


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """The same sound at RATE samples a second, by its spectrum."""
    length = round(len(samples) * RATE / rate)
    return np.fft.irfft(np.fft.rfft(samples)[: length // 2 + 1], length) * length / len(samples)


def recording(
    rng: np.random.Generator, spoken: list[Clip], seconds: float
) -> tuple[np.ndarray, list[Said]]:
    """Words drawn from the clips, with pauses between, in noise of some colour and loudness."""
    length = int(seconds * RATE)
    samples, said = np.zeros(length), []
    at = rng.integers(RATE)
    while True:
        word, clip = spoken[rng.integers(len(spoken))]
        end = at + len(clip)
        if end + RATE // 2 > length:
            break
        samples[at:end] += clip * 10 ** rng.uniform(-0.3, 0.0) / np.abs(clip).max()
        said.append(Said(word, int(at), int(end)))
        at = end + rng.integers(RATE // 10, RATE)
    samples += 10 ** rng.uniform(-3.0, -1.5) * noise(rng, length)
    samples *= 10 ** rng.uniform(-1.0, -0.1)
    return np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.float32) / 32768, said


def noise(rng: np.random.Generator, length: int) -> np.ndarray:
    """White noise through some filter, of a root mean square of 1."""
    taps = rng.standard_normal(16) * rng.uniform(0, 1) ** np.arange(16)
    samples = np.convolve(rng.standard_normal(length), taps, "same")
    return samples / np.sqrt(np.mean(np.square(samples)))


def write_wav(path: Path, samples: np.ndarray) -> None:
    """One channel of 16 bits."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples * 32768).astype("<i2").tobytes())
