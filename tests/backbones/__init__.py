"""Backbones: names, weights, tokens."""
