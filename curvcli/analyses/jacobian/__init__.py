"""How the network stretches what goes in: norms and singular values of Jacobians."""
