# SPDX-License-Identifier: Apache-2.0
"""Open-vocabulary segmentation of scene sketches (Bourouis, Fan and Gryaditskaya, CVPR 2024)."""
