# SPDX-License-Identifier: Apache-2.0
"""The 85 sentences that a category is put into before it is encoded.

Source: the 80 for ImageNet of Radford et al., ICML 2021, arXiv:2103.00020, and five about scenes of
Li et al., arXiv:2304.05653.
"""

from __future__ import annotations

_ARTICLES = ("a", "the")
_BOTH = (
    "a bad photo of _ {}",
    "a sculpture of _ {}",
    "a rendering of _ {}",
    "graffiti of _ {}",
    "a tattoo of _ {}",
    "a bright photo of _ {}",
    "a drawing of _ {}",
    "a close-up photo of _ {}",
    "a painting of _ {}",
    "a cropped photo of _ {}",
    "a jpeg corrupted photo of _ {}",
    "_ {} in a video game",
    "a doodle of _ {}",
    "a photo of _ {}",
    "a sketch of _ {}",
    "a low resolution photo of _ {}",
    "a rendition of _ {}",
    "a blurry photo of _ {}",
    "art of _ {}",
    "a pixelated photo of _ {}",
    "a good photo of _ {}",
    "a black and white photo of _ {}",
    "a dark photo of _ {}",
    "itap of _ {}",
    "there is _ {} in the scene",
    "this is _ {} in the scene",
    *(
        f"a photo of _ {adjective} {{}}"
        for adjective in (
            "hard to see",
            "clean",
            "dirty",
            "cool",
            "large",
            "nice",
            "weird",
            "small",
        )
    ),
    *(
        f"_ {style} {{}}"
        for style in ("embroidered", "plastic", "origami", "toy", "cartoon", "plushie")
    ),
)
_ONE = (
    "a photo of many {}",
    "a photo of my {}",
    "a photo of one {}",
    "itap of my {}",
    "this is one {} in the scene",
)

TEMPLATES: tuple[str, ...] = (
    *(f"{form.replace('_', article)}." for form in _BOTH for article in _ARTICLES),
    *(f"{form}." for form in _ONE),
)
"""Each with ``{}`` where the category goes."""
