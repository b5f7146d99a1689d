"""What a finding is judged by: every question names its rules once, in its ``rules.py``."""

from dataclasses import dataclass

from curvcli.report.data import Severity


@dataclass(frozen=True)
class Rule:
    """One kind of finding.

    Args:
        id: ``command.name``, what `check` and other programs know it by.
        severity: of its findings.
        source: what the threshold comes from, or what the rule follows from.
        threshold: what values are held against; None: the finding says it.
        remedy: what to do, which ends the message.
        finer: what to do where figures are not in float64 yet, before the remedy.
    """

    id: str
    severity: Severity
    source: str
    threshold: float | None = None
    remedy: str = ""
    finer: str = ""


# A product that differs more than this from the finite difference of the gradient is suspect. Smooth
# networks in float32 come to 1e-5 … 1e-3, kinks (ReLU) within a step to some percent.
CHECK_LIMIT = 0.1
# Above this a product is repeated in float64, where smooth networks come to 1e-6 and a wrong derivative stays off.
SUSPECT = 0.01
# An error of the computed matrix above this share of ‖H‖ is said: the network amplifies rounding.
PRECISION_LIMIT = 1e-3

PRODUCTS = Rule(
    "hessian.products",
    "error",
    "finite differences of the gradient, in float32 and in float64",
    threshold=SUSPECT,
    remedy="look for a custom backward, .detach() or torch.no_grad()",
)
KINKS = Rule(
    "hessian.kinks",
    "note",
    "the same differences over a step of 1e-7 in float64",
    threshold=CHECK_LIMIT,
)
SINGLE_PRECISION = Rule(
    "hessian.single-precision",
    "note",
    "the same differences over longer steps",
    threshold=CHECK_LIMIT,
)
PRECISION = Rule(
    "hessian.precision",
    "warning",
    "products repeated in float64 on some samples",
    threshold=PRECISION_LIMIT,
    finer="use --dtype float64",
)


def product_check(difference: float | None) -> str | None:
    """How the check of a product is shown; where it is large, a finding says whether a kink or a fault is why.

    >>> product_check(0.02)
    'agrees with finite differences to 2%'
    """
    if difference is None:
        return None
    if difference <= SUSPECT:
        return f"right to {difference:.1e} (against finite differences)"
    if difference <= CHECK_LIMIT:  # no finding where float64 or a kink explains it
        return f"agrees with finite differences to {difference:.0%}"
    return f"{difference:.0%} off finite differences: the findings say why"
