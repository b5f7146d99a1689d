"""What questions about a curvature matrix share: which matrix, its eigenpairs, and how products are certified."""
