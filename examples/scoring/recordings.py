"""Recordings of a machine by a vibration sensor, made up: some have a bearing that fails."""

from pathlib import Path

import numpy as np

RATE = 1000  # samples a second
CHANNELS = 3


def record(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Write so many recordings (L, 3), of 4 to 12 seconds each; an odd number's bearing fails."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:04}.npy" for number in range(count)]
    for number, file in enumerate(files):
        np.save(file, recording(number, seed))
    return files


def recording(number: int, seed: int = 0) -> np.ndarray:
    """A machine that hums, and from somewhere on the knocks of a ball over a dent."""
    random = np.random.default_rng((seed, number))
    steps = int(random.integers(4, 13)) * RATE
    time = np.arange(steps) / RATE
    speed = random.uniform(20, 30)  # turns a second
    phases = random.uniform(0, 2 * np.pi, (CHANNELS, 1))
    hum = np.sin(2 * np.pi * speed * time + phases) + 0.3 * np.sin(4 * np.pi * speed * time)
    x = hum + random.normal(0, 0.6, hum.shape)
    if fails(number):
        begins = random.uniform(0.3, 0.6) * time[-1]
        since = (time * 3.6 * speed) % 1 / (3.6 * speed)  # the last knock, in seconds
        ringing = np.exp(-300 * since) * np.sin(2 * np.pi * 310 * since)
        x += np.where(time > begins, 1.4 * ringing, 0)
    return x.T.astype("float32")


def fails(number: int) -> bool:
    """Whether that recording's bearing does."""
    return number % 2 == 1
