# SPDX-License-Identifier: Apache-2.0
"""A local web page over the library: drop a picture or draw a sketch, type words, see the labels.

It needs the extra ``app`` (starlette, uvicorn, python-multipart).
"""

from patchword.app.limits import Limits
from patchword.app.server import create_app, serve
from patchword.app.workbench import Workbench

__all__ = ["Limits", "Workbench", "create_app", "serve"]
