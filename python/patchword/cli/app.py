# SPDX-License-Identifier: Apache-2.0
"""``patchword app``: serves the page on which pictures, sketches and words can be tried."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import ClassVar

from patchword.cli.common import MAX_MEGAPIXELS, CommonFlags, Outcome
from patchword.errors import ConfigError

_PORTS = 65535


@dataclass(frozen=True, kw_only=True)
class App(CommonFlags):
    """A local page: drop a picture or draw a sketch, type words, move the threshold.

    Serves until interrupted. Needs the extra ``app``.
    """

    example: ClassVar[str] = "patchword app --port 7860"

    host: str = "127.0.0.1"
    """Address to listen on; the default can be reached from this machine only."""
    port: int = 7860
    """TCP port."""
    max_megabytes: float = 20.0
    """Largest request."""
    max_megapixels: float = 12.0
    """Largest picture."""
    open: bool = False
    """Open the page in the browser."""

    def check(self) -> None:
        """Refuse flags out of range, see :meth:`CommonFlags.check`."""
        super().check()
        if not 1 <= self.port <= _PORTS:
            raise ConfigError(f"--port must be in [1, {_PORTS}], got {self.port}.")
        if not 0 < self.max_megapixels <= MAX_MEGAPIXELS:
            raise ConfigError(
                f"--max-megapixels must be above 0 and at most {MAX_MEGAPIXELS:g}, "
                f"got {self.max_megapixels:g}."
            )
        if not self.max_megabytes > 0:
            raise ConfigError(f"--max-megabytes must be above 0, got {self.max_megabytes:g}.")

    def run(self, name: str) -> Outcome:
        """Serve."""
        from patchword.app import Limits, serve
        from patchword.cli.common import complain

        shown = f"[{self.host}]" if ":" in self.host else self.host
        url = f"http://{shown}:{self.port}/"
        result = {"url": url}
        self._check_port()
        if self.dry_run:
            return Outcome(result, f"would serve {url}")
        complain(f"serving {url} (Ctrl-C stops it)")
        if self.open:
            import webbrowser

            webbrowser.open(url)
        limits = Limits(
            max_bytes=round(self.max_megabytes * 1024**2),
            max_pixels=round(self.max_megapixels * 1e6),
        )
        with self.computing():
            serve(host=self.host, port=self.port, limits=limits)
        return Outcome(result, "stopped")

    def _check_port(self) -> None:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((self.host, self.port))
        except OSError as error:
            raise ConfigError(
                f"app: {self.host} port {self.port} must be free to listen on, got "
                f"{error.strerror or error}. Choose another with --port."
            ) from error
