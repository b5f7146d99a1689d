"""How far the second-order model of the loss can be trusted."""
