# SPDX-License-Identifier: Apache-2.0
"""The command ``patchword``: flags, exit codes and what goes to stdout; the work is elsewhere."""
