"""How `curvcli doctor` is shown."""

from curvcli.analyses.doctor.result import DoctorResult
from curvcli.report.data import Block, Column, Facts, Table, yes


def view(result: DoctorResult) -> list[Block]:
    """Versions and tests."""
    facts = Facts(
        [
            ("python", result.python),
            ("platform", result.platform),
            *((name, version) for name, version in result.packages.items()),
            ("devices", ", ".join(result.devices)),
            ("threads", result.threads),
            ("free memory", f"{result.free_memory / 1e9:.1f} GB"),
        ]
    )
    table = Table(
        "Self-tests",
        (
            Column("test", numeric=False, folds=True),
            Column("error"),
            Column("tolerance"),
            Column("passed", numeric=False, rank=0),
        ),
        [(t.name, t.error, t.tolerance, yes(t.passed)) for t in result.tests],
    )
    return [facts, table]
