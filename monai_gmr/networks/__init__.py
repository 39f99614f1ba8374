"""Layers, blocks and nets, and what serves them."""
