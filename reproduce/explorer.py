"""Pictures of docs/explorer.md: pages of the demo atlas (`make demo`), in the system's Chromium.

python reproduce/explorer.py [demo/smollm2-135m]
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURES = Path(__file__).parent.parent / "docs" / "explorer"
NEURON = "at/L22.ff.725"
SHOTS = (
    ("model", "", (1180, 780), "light"),
    ("neuron", NEURON, (1180, 760), "dark"),
    ("cloud", f"cloud/{NEURON.removeprefix('at/')}", (1000, 640), "light"),
    ("phone", NEURON, (390, 780), "light"),
)
"""File name, page, size in pixels, colour scheme."""


def main(atlas: str) -> None:
    """Serve the atlas and take every picture."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    command = [sys.executable, "-m", "zeropass", "serve", atlas, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        address = server.stdout.readline().split()[0].rstrip("/")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        for name, page, (width, height), scheme in SHOTS:
            shot = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            shot.goto(f"{address}/{page}", wait_until="networkidle")
            shot.screenshot(path=PICTURES / f"{name}.png")
            print(f"{name}.png: {shot.title()}")
        browser.close()
        server.terminate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("atlas", nargs="?", default="demo/smollm2-135m")
    main(parser.parse_args().atlas)
