"""`curvcli backprop`: is the gradient that the model computes the gradient of its loss?"""

from curvcli.analyses.backprop.command import BackpropOptions
from curvcli.analyses.backprop.findings import IDENTITY, SLOPE
from curvcli.analyses.backprop.identities import BackpropCheck
from curvcli.analyses.backprop.result import BackpropResult, IdentityCheck, SlopeCheck
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import some

# Relative errors that single precision inside the network explains: sums of some thousand terms, and differences over
# steps that its rounding allows.
SINGLE_TOL = 1e-4
SINGLE_SLOPE_TOL = 3e-2


def run(subject: Subject, options: BackpropOptions, journal: Journal) -> Answer[BackpropResult]:
    """Answer `curvcli backprop`; see `BackpropOptions`.

    Raises:
        CurvError: wrong input; see the subclasses.
    """
    journal.progress(Stage("loading", 0, None))
    check = BackpropCheck(subject.objective, options.samples)
    subject.objective.cost.gradients += 1
    if check.differentiates:
        journal.note(
            "the loss takes derivatives itself: δᵀx is not the whole gradient, and is left out"
        )
    tol, slope_tol = options.tol, options.slope_tol
    if check.single:
        tol, slope_tol = max(tol, SINGLE_TOL), max(slope_tol, SINGLE_SLOPE_TOL)
        journal.note(
            "parts of the network compute in less than double precision whatever they are given: gradients are "
            f"checked to {tol:g} and {slope_tol:g}"
        )
    identities = [
        IdentityCheck(i.parameter, i.layers, i.kind, i.norm, i.error, i.error <= tol)
        for i in check.identities()
    ]
    slopes = [
        SlopeCheck(s.parameter, s.exact, s.difference, s.error, s.error <= slope_tol, s.certain)
        for s in check.slopes(
            subject.spec.seed,
            slope_tol,
            lambda done, all_: journal.progress(Stage("finite differences", done, all_)),
            journal.stop,
        )
    ]
    asked = len(subject.objective.names)
    if len(slopes) < asked:
        journal.cut_short(
            f"ended early: {len(slopes)} of {asked} gradients were compared with differences"
        )
    _report_identities(journal, identities, tol)
    wrong = _report_slopes(journal, slopes, slope_tol)
    return journal.answer(
        BackpropResult(
            identities=identities,
            slopes=slopes,
            samples=check.samples,
            tolerance=tol,
            slope_tolerance=slope_tol,
            passed=all(i.passed for i in identities) and not wrong,
            parameters=subject.objective.dimension,
        )
    )


def _report_identities(journal: Journal, identities: list[IdentityCheck], tol: float) -> None:
    """A finding for each that does not hold."""
    for identity in identities:
        if not identity.passed:
            journal.find(
                IDENTITY, identity.parameter,
                f"the gradient of {identity.parameter} is not δᵀx of {', '.join(identity.layers)}: a hook or a "
                "custom function changes it behind the layer",
                value=identity.error, threshold=tol,
            )  # fmt: skip


def _report_slopes(journal: Journal, slopes: list[SlopeCheck], tol: float) -> bool:
    """A finding for each that is wrong, and where the fault lies; whether there is one."""
    wrong = [s for s in slopes if not s.passed and s.decided]
    open_ = [s.parameter for s in slopes if not s.decided]
    if open_:
        journal.note(
            f"{some(open_)} cannot be decided here: differences of several lengths, or to both sides, do not agree "
            "with each other (kinks at these weights, or weights so large that steps are lost)"
        )
    for slope in wrong:
        journal.find(
            SLOPE, slope.parameter,
            f"the gradient of {slope.parameter} is not that of the loss (gᵀv = {slope.exact:.4g}, finite difference "
            f"{slope.difference:.4g}): a wrong backward or a detached branch lies between it and the loss",
            value=slope.error, threshold=tol,
        )  # fmt: skip
    if wrong:
        right = [s.parameter for s in slopes if s.passed]
        last = wrong[-1].parameter
        after = right[0] if right and slopes.index(wrong[-1]) + 1 < len(slopes) else None
        journal.note(
            f"parameters up to {last!r} are wrong"
            + (f", later ones are right: the fault lies behind {last!r}" if after else "")
        )
    return bool(wrong)
