"""How `curvcli doctor` is shown."""

from curvcli.analyses.doctor.result import DoctorResult
from curvcli.report.data import Block, Column, Facts, Table


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
            Column("test", numeric=False),
            Column("error"),
            Column("tolerance"),
            Column("passed", numeric=False),
        ),
        [(t.name, t.error, t.tolerance, t.passed) for t in result.tests],
    )
    return [facts, table]
