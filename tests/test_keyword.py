"""The example that detects words: one definition, and the same bytes in Python, C and a page."""

import sys

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed; the example trains with it")
import elman.export
from examples.keyword import __main__ as keyword
from examples.keyword import programs, speech
from examples.keyword.detector import BANDS, FRAME, Detector, bank, heard
from examples.keyword.score import score
from examples.keyword.speech import RATE, WORDS, Said

NO_BROWSER = "the page needs clang, wasm-ld, Chromium and playwright"


def tones(word, voice, speed, pitch):
    """Words of tones, where no espeak-ng is."""
    seconds = np.arange(RATE // 3) / RATE
    pitches = [100 + 37 * ord(letter) % 3000 for letter in word[:2]]
    return sum(np.sin(2 * np.pi * f * seconds) for f in pitches) * np.hanning(len(seconds))


def test_loudness_of_a_tone_is_its_amplitude():
    """In the band that it is of, wherever in its wave the frame begins: 0.87 to 1 times it."""
    model = Detector().model()
    bands = elman.export.Model(model.layers[:3])
    spectra = np.abs(np.fft.rfft(bank().swapaxes(1, 2).reshape(3 * BANDS, -1)[:BANDS], 2**14))
    for band in (4, 10, 17):
        turns = spectra[band].argmax() / 2**14 * np.arange(40 * FRAME)
        tone = 0.3 * np.cos(2 * np.pi * turns)
        loudness = bands(tone.astype("f").reshape(-1, FRAME))[0][2:]
        assert (loudness.argmax(1) == band).all()
        assert 0.3 * 0.855 < loudness[:, band].min() < loudness[:, band].max() < 0.3 * 1.005


def test_what_was_heard_of_what_was_said():
    other, left, stop = [1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 1]
    classes = np.array([other, left, left, stop, other, left, other, left], "f")
    assert heard(classes) == [(1, 2), (3, 4), (5, 2), (7, 2)]
    late = int(0.4 * RATE)
    said = [Said("left", 0, 2 * FRAME), Said("rat", 3 * FRAME, 4 * FRAME - late)]
    said.append(Said("right", 5 * FRAME, 6 * FRAME - late))
    found = score(classes, said)
    assert found.confusion[2, 2] == found.confusion[0, 4] == found.confusion[3, 2] == 1
    assert (found.confusion.sum(), found.unsaid, found.false_alarms) == (3, 1, 3)
    assert found.accuracy == 0.5


def test_the_same_bytes_in_python_and_c(tmp_path):
    model = Detector().model()
    (tmp_path / "keyword.h").write_text(elman.export.header(model, "keyword"))
    programs.compile_detect(tmp_path)
    spoken = [speech.Clip(word, tones(word, "", 0, 0)) for word in WORDS]
    samples, _ = speech.recording(np.random.default_rng(0), spoken, 3)
    speech.write_wav(tmp_path / "in.wav", samples)
    by_c, printed = programs.detect(tmp_path, tmp_path / "in.wav")
    classes = keyword.stream(model, samples)
    assert by_c.tobytes() == classes.tobytes()
    events = [f"{frame * FRAME / RATE:8.2f} s  {WORDS[k - 1]}" for frame, k in heard(classes)]
    assert printed.splitlines() == events


def test_all_of_it(tmp_path, monkeypatch, capsys):
    """From tones, which it learns in a few steps, to the page."""
    pytest.importorskip("playwright", reason=NO_BROWSER)
    monkeypatch.setattr(speech, "say", tones)
    if set(programs.missing()) - {"espeak-ng"}:
        pytest.skip(NO_BROWSER)
    monkeypatch.setattr(programs, "missing", list)
    for name, some in {"VOICES": 1, "OTHERS": 6, "HELD_OUT": 1, "STRANGE": 3}.items():
        monkeypatch.setattr(keyword, name, getattr(keyword, name)[:some])
    options = ["--steps=12", "--minutes=1", f"--output={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["keyword", *options])
    keyword.main()
    assert "the C program, of the page and of Python: the same bytes" in capsys.readouterr().out
    assert (tmp_path / "keyword.png").stat().st_size > 1000
