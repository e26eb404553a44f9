"""The exported header in use: as a C program, as WebAssembly in a page, and that in a browser."""

import base64
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np

from .detector import FRAME
from .speech import RATE, WORDS

HERE = Path(__file__).parent
WASM = ["--target=wasm32-wasi", "-isystem/usr/include/wasm32-wasi", "-L/usr/lib/wasm32-wasi"]
WASM += ["-nostartfiles", "-Wl,--no-entry"]  # functions, and no main
COMPILERS, BROWSERS = ("cc", "gcc", "clang"), ("chromium", "google-chrome", "chrome")


def first(commands: tuple[str, ...]) -> str:
    """Where the first of them is that there is; without any, the first."""
    return next(filter(None, map(shutil.which, commands)), commands[0])


COMPILER, BROWSER = first(COMPILERS), first(BROWSERS)


def missing() -> list[str]:
    """Commands that are needed and not there."""
    needed = ("espeak-ng", COMPILER, "clang", "wasm-ld", BROWSER)
    return [command for command in needed if not shutil.which(command)]


def compile_detect(folder: Path) -> None:
    """Of keyword.h in the folder, the program detect."""
    source, program = HERE / "detect.c", folder / "detect"
    command = [COMPILER, "-std=c99", "-O3", f"-I{folder}", source, "-o", program]
    subprocess.run(command, check=True)


def detect(folder: Path, wav: Path) -> tuple[np.ndarray, str]:
    """Each frame's classes by the C program, (L, 1 + words), and what it printed."""
    command = [folder / "detect", wav, folder / "classes", *WORDS]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return np.fromfile(folder / "classes", "<f4").reshape(-1, 1 + len(WORDS)), said


def write_page(folder: Path) -> None:
    """keyword.html, with all that it needs in it."""
    wasm = folder / "keyword.wasm"
    source = HERE / "page.c"
    subprocess.run(["clang", *WASM, "-O3", f"-I{folder}", source, "-o", wasm], check=True)
    code = base64.b64encode(wasm.read_bytes()).decode()
    model = json.dumps({"words": WORDS, "rate": RATE, "frame": FRAME, "wasm": code})
    page = (HERE / "page.html").read_text()
    place = "/* put in when the page is made */ null"
    (folder / "keyword.html").write_text(page.replace(place, model))


def browse(folder: Path, wav: Path) -> tuple[np.ndarray, list[str]]:
    """Classes of a file's frames by the page in a browser, and words that its microphone heard.

    The microphone is the browser's own for such tests, which plays the file. Saves page.png.
    """
    from playwright.sync_api import sync_playwright

    seconds = wav.stat().st_size / 2 / RATE
    microphone = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    microphone += [f"--use-file-for-fake-audio-capture={wav.resolve()}%noloop"]
    arguments = ["--no-sandbox", *microphone]  # a sandbox is refused to root, as in a container
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=arguments)
        page = browser.new_page(viewport={"width": 1000, "height": 700})
        page.goto((folder / "keyword.html").resolve().as_uri())
        page.set_input_files("#file", wav)
        page.wait_for_function("classes.length > 0")
        classes = page.evaluate("classes.map(found => [...found])")
        page.screenshot(path=folder / "page.png")
        page.click("#microphone")
        page.wait_for_timeout(1000 * (seconds + 1))
        words = page.evaluate("events.map(event => event.word)")
        browser.close()
    return np.float32(classes), words
