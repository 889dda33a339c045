# SPDX-License-Identifier: Apache-2.0
"""Rows that time a whole system beside the same computation written with torch's own modules."""
