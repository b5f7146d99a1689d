"""Commands derived from the analyses; the only place that knows Typer."""
