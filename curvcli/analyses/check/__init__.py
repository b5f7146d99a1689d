"""Whether checkpoints keep the rules that their project sets."""
