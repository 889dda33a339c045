# SPDX-License-Identifier: Apache-2.0
"""The training loop, its checkpoints and its records; it knows no system by name."""
