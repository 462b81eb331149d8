"""Adapters: bring the maps of a pair of layers to the same channels.

The files of this folder fill `ADAPTERS`; `base` has the contract.
"""

from distill.adapters.base import ADAPTERS, Adapter, LayerPair

__all__ = ["ADAPTERS", "Adapter", "LayerPair"]
