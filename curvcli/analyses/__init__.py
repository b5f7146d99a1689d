"""The questions that can be asked of a network: one folder, one question, one command."""
