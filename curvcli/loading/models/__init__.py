"""Networks from Python code, libraries and directories."""
