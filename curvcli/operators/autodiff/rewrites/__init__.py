"""Layers of the network in forms whose derivatives cost less; one registry, one switch."""
