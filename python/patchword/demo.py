# SPDX-License-Identifier: Apache-2.0
"""The main job on the pictures that ship: ``python -m patchword.demo [FOLDER]``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

PICTURES = Path(__file__).parent / "assets" / "demo"


def main() -> int:
    """Match the demo pair, locate the demo phrases, and print where the results lie."""
    from patchword import locate, match
    from patchword.data.io import read_image

    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo_output")
    image0, image1 = PICTURES / "pair0.jpg", PICTURES / "pair1.jpg"
    start = time.perf_counter()
    result = match(read_image(image0), read_image(image1))
    files = result.save(folder / "match")
    seconds = time.perf_counter() - start
    print(f"match  {image0.name} and {image1.name}, {seconds:.1f} s")
    print(f"       {len(result.matches)} correspondences, score {result.score:.2f}")
    print(f"       picture: {files['overlay']}")

    phrases = (PICTURES / "phrases.txt").read_text(encoding="utf-8").split("\n")
    phrases = [phrase for phrase in phrases if phrase]
    start = time.perf_counter()
    located = locate(read_image(PICTURES / "scene.jpg"), phrases)
    files = located.save(folder / "locate")
    seconds = time.perf_counter() - start
    print(f"locate scene.jpg, {len(phrases)} phrases, {seconds:.1f} s")
    for phrase, score in zip(located.texts, located.scores, strict=True):
        print(f"       {phrase}: {score:.2f}")
    print(f"       picture: {files['overlay']}")
    print(f"everything lies in {folder.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
