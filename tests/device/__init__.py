"""What holds on every device, run on a second one: see `conftest`."""
