# SPDX-License-Identifier: Apache-2.0
"""Speed, memory and accuracy of the ops beside their peers: ``python -m benchmarks.run``."""
