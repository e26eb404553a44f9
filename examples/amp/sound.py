"""What is played, and the amplifier that it is played through: both by formulas."""

import wave
from pathlib import Path

import numpy as np

RATE = 24000  # samples a second


def guitar(seconds: float, seed: int) -> np.ndarray:
    """Chords of plucked strings, each a delay line that loses its high tones as it sounds.

    Karplus and Strong, "Digital Synthesis of Plucked-String and Drum Timbres", Computer Music
    Journal 7 (1983).
    """
    rng = np.random.default_rng(seed)
    sound = np.zeros(int(seconds * RATE))
    for start in range(0, len(sound), RATE // 2):
        root = rng.choice([82.4, 98.0, 110.0, 146.8])
        length = min(RATE, len(sound) - start)
        for interval in rng.choice([1, 1.25, 1.5, 2, 3], size=rng.integers(1, 4), replace=False):
            sound[start : start + length] += rng.uniform(0.2, 1) * pluck(
                rng, root * interval, length
            )
    return (0.8 * sound / np.abs(sound).max()).astype(np.float32)


def pluck(rng: np.random.Generator, frequency: float, length: int) -> np.ndarray:
    """One string."""
    period = round(RATE / frequency)
    line, parts = rng.uniform(-1, 1, period), []
    for _ in range(-(-length // period)):
        parts.append(line)
        line = 0.498 * (line + np.roll(line, 1))
    return np.concatenate(parts)[:length]


def amplifier(x: np.ndarray) -> np.ndarray:
    """A valve amplifier: coupling capacitor, a stage that clips unevenly and tires, loudspeaker."""
    y = np.empty(len(x))
    slow = charge = low = 0.0
    for t, value in enumerate(x.astype(float)):
        slow += 0.01 * (value - slow)  # what the capacitor keeps back, below 40 Hz
        driven = 8 * (value - slow) - 2 * charge
        clipped = (
            np.tanh(driven + 0.3) - np.tanh(0.3) if driven > -1 else np.tanh(0.8 * driven) - 0.05
        )
        charge += 0.002 * (abs(clipped) - charge)  # the supply sags while it is loud
        low += 0.55 * (clipped - low)  # the loudspeaker, above 3 kHz
        y[t] = 0.7 * low
    return y.astype(np.float32)


def write_wav(path: Path, x: np.ndarray) -> None:
    """One channel of 16 bits."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.clip(np.rint(x * 32768), -32768, 32767).astype("<i2").tobytes())


def read_wav(path: Path) -> np.ndarray:
    """The same, as numbers from -1 to 1."""
    with wave.open(str(path), "rb") as file:
        frames = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return frames.astype(np.float32) / np.float32(32768)
