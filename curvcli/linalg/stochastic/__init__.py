"""Sums over whole spectra from random vectors."""
