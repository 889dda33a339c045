# SPDX-License-Identifier: Apache-2.0
"""Reading pictures and walking folders of pictures; nothing here computes features."""

from patchword.data.folders import ImageItem, count_images, iter_items, list_images
from patchword.data.io import MAX_PIXELS, read_image

__all__ = [
    "MAX_PIXELS",
    "ImageItem",
    "count_images",
    "iter_items",
    "list_images",
    "read_image",
]
