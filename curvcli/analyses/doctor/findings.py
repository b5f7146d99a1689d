"""What `curvcli doctor` finds."""

from curvcli.analyses.shared.rules import Rule

SELF_TEST = Rule("doctor.self-test", "error", "a computation whose answer is known")
