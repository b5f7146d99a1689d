"""Batches from files, folders and Python code."""
