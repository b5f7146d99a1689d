"""Answers as an HTML page."""
