# SPDX-License-Identifier: Apache-2.0
"""Network modules that more than one system uses."""
