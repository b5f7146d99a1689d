"""Curvature matrices of the loss: Hessian, Gauss-Newton, Fisher."""
