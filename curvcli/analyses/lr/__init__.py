"""A learning rate that works, with its evidence."""
