# SPDX-License-Identifier: Apache-2.0
"""Other libraries' ways to the same results, with their best documented settings."""
