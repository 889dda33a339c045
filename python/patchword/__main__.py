# SPDX-License-Identifier: Apache-2.0
"""``python -m patchword``: the command line."""

import sys

from patchword.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
