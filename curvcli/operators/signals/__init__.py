"""Activations and their gradients, layer by layer."""
