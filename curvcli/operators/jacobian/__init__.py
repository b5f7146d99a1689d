"""Jacobians of a network's parts."""
