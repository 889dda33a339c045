# SPDX-License-Identifier: Apache-2.0
"""The published evaluations of SegSwap on retrieval: artworks (Brueghel) and places."""
