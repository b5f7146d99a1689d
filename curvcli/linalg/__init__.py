"""Algorithms that know nothing of a linear map but how to multiply with it."""
