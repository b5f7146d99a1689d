"""The ends of a curvature matrix's spectrum, each eigenvalue with its error."""
