"""Whether this installation computes what it should, in one sentence."""

from curvcli.analyses.doctor.result import DoctorResult
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.headline import judged
from curvcli.report.data import Headline


def headline(answer: Answer[DoctorResult]) -> Headline:
    """Healthy, or which test failed."""
    result = answer.result
    failed = [t.name for t in result.tests if not t.passed]
    if failed:
        return judged(
            answer, f"Do not trust figures of this installation: {failed[0]} is wrong.", "bad"
        )
    return judged(
        answer, f"This installation computes what it should: {len(result.tests)} self-tests passed."
    )
