"""Tests of `curvcli report`."""
