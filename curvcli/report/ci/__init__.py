"""Answers in the formats of CI systems."""
