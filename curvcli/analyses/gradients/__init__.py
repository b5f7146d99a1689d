"""How activations and gradients grow or fade through the layers and over time."""
