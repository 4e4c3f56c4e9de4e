"""Inference: sessions over a model and a stack of adapters, and decoding."""
