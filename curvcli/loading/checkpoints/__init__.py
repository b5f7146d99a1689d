"""Files of weights in every format, read without running what they hold."""
