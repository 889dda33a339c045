# SPDX-License-Identifier: Apache-2.0
"""The benchmark rows, one module per op."""
