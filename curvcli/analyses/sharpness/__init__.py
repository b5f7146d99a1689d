"""How much the loss rises around the weights, by measures that rescaled layers change or do not."""
