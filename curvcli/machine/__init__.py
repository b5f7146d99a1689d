"""What a computation runs on: devices, their memory, and nested containers of tensors."""
