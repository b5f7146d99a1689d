"""What several parts of a run say alike is said once."""

from curvcli.analyses.shared.journal import Journal
from curvcli.analyses.shared.rules import Rule

RULE = Rule("shared.example", "note", "an example")


def test_notes_and_findings_of_parts_are_merged() -> None:
    """One line with all names; of findings the largest value stands for the others."""
    whole = Journal()
    for index, value in enumerate((0.1, -0.3, 0.2)):
        part = whole.part("")
        part.note(f"{index}.pt keeps no names")
        part.note(f"something of {index} alone")
        part.find(RULE, "check", f"off by {value}", value=value)
        whole.gather(part, f"run/{index}.pt")
    names = "run/0.pt, run/1.pt, run/2.pt"
    assert f"{names}: the file keeps no names" in whole.notes
    assert "run/1.pt: something of 1 alone" in whole.notes
    assert len(whole.notes) == 4
    (found,) = whole.findings
    assert (found.subject, found.value) == (f"{names}: check", -0.3)
    assert found.message == f"{names}: off by -0.3 (the largest of these)"


def test_no_finer_type_is_advised_in_float64() -> None:
    """Other remedies stay; parts of the run know it too."""
    rule = Rule(
        "shared.coarse",
        "warning",
        "an example",
        remedy="use a larger --tol",
        finer="use --dtype float64",
    )
    alone = Rule("shared.alone", "warning", "an example", finer="use --dtype float64")
    for double, told in (
        (False, "off: use --dtype float64 or use a larger --tol"),
        (True, "off: use a larger --tol"),
    ):
        journal = Journal()
        journal.in_double = lambda double=double: double  # type: ignore[misc]
        part = journal.part("")
        part.find(rule, "x", "off")
        part.find(alone, "x", "off")
        assert [f.message for f in part.findings] == [
            told,
            "off" if double else "off: use --dtype float64",
        ]
