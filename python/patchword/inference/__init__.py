# SPDX-License-Identifier: Apache-2.0
"""Runs over folders that may be killed and resumed, and the files they leave behind."""
