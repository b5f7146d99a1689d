"""Intervals, robust slopes, noise."""
