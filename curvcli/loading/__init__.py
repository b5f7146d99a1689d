"""From strings to tensors: what is being inspected."""
