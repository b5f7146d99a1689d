"""From flags to exit code; the only place that knows Typer."""
