# SPDX-License-Identifier: Apache-2.0
"""Rows measured on CUDA alone, at the sizes of real use, with the targets of the GPU kernels."""
