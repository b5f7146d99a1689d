"""One step by each of several methods, predicted and true."""
