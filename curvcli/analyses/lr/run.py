"""`curvcli lr`: short true runs at several rates, beside the bound from the curvature."""

import torch
from torch.optim import Optimizer

from curvcli.analyses.lr.command import LrOptions
from curvcli.analyses.lr.findings import BELOW_BOUND, CHECKPOINT_RATE, NONE_WORKS
from curvcli.analyses.lr.optimizers import Setup, setup
from curvcli.analyses.lr.result import Bound, CurvaturePoint, LrResult, Trial, WarmUp
from curvcli.analyses.lr.search import FACTOR, highest_working, judge, lowest_failing, search
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.spectrum.certified import by_recurrence
from curvcli.analyses.shared.spectrum.eigenpairs import critical_rates
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import CurvError
from curvcli.linalg.lanczos.lanczos import LanczosResult, lanczos
from curvcli.linalg.lanczos.ritz import Wanted
from curvcli.operators.curvature.hessian import Hessian
from curvcli.operators.curvature.preconditioned import PreconditionedHessian
from curvcli.operators.surface.rollout import dead_units, rollout

# Relative error of λ at the start and along runs, and products spent on it there.
_TOL, _ROUGH, _FEW = 1e-2, 5e-2, 30
# The reach at the start fails with this probability.
_FAILURE = 1e-3
# A rate is confirmed together with this share of it.
_NEIGHBOUR = 0.9
# So many times a factor lower is tried where no rate stands a longer run.
_LOWER = 5
# The first rate, in units of the bound.
_FIRST = 1 / 8
# Rate where the curvature gives no bound.
_USUAL = 1e-3


def run(subject: Subject, options: LrOptions, journal: Journal) -> Answer[LrResult]:
    """Answer `curvcli lr`; see `LrOptions`.

    Raises:
        CurvError: wrong input; see the subclasses.
    """
    journal.progress(Stage("loading", 0, None))
    subject.objective  # noqa: B018  # what is wrong with the target is said before anything of the optimizer
    return _Finder(subject, options, journal).answer()


class _Finder:
    """One search."""

    def __init__(self, subject: Subject, options: LrOptions, journal: Journal) -> None:
        self._options, self._journal, self._subject = options, journal, subject
        self._objective = subject.objective
        self._setup: Setup = setup(subject, options)
        self._dead = dead_units(self._objective)
        journal.progress(Stage("curvature", 0, None))
        self._operator = self._matrix(self._setup.make(self._objective), None)
        found = self._lanczos(self._operator, _TOL, options.max_matvecs)
        pairs, rounding = by_recurrence(journal, self._operator, found)
        self._top, self._residual = pairs[0].value, pairs[0].residual
        self._upper = found.upper + rounding
        eps = torch.finfo(self._objective.dtype).eps
        self._rounding = 32 * eps * abs(self._objective.loss)

    def answer(self) -> Answer[LrResult]:
        """Runs at several rates, curvature and warm-up at the highest that works."""
        options, journal, bound = self._options, self._journal, self._bound()
        first = _FIRST * bound.rate if bound.rate else _USUAL
        saved = self._setup.saved_rate
        most = options.max_trials - (1 if saved else 0)
        trials = search(first, self._trial, options.refine, most)
        if saved and all(t.rate != saved for t in trials):
            own = self._trial(saved)
            trials = sorted([*trials, *([own] if own else [])], key=lambda t: t.rate)
        if options.confirm:
            trials = self._confirmed(trials)
        good, bad = highest_working(trials), lowest_failing(trials)
        if journal.stop() is not None:
            journal.cut_short("ended before all rates were tried")
        working = [t for t in trials if good is not None and t.rate <= good.rate]
        best = min(working, key=lambda t: t.loss or 0.0, default=None)
        result = LrResult(
            optimizer=self._setup.kind,
            state="checkpoint" if self._setup.states else "fresh",
            bound=bound,
            lowest=_half_gain(working, self._objective.loss, best),
            best=best.rate if best else None,
            highest=good.rate if good else None,
            ends_by=bad.verdict if bad else None,
            fails_at=bad.rate if bad else None,
            trials=trials,
            curvature=self._along(good.rate) if good else [],
            warm_up=self._warmed_up(2 * good.rate) if good and bad else None,
            loss=self._objective.loss,
            dead_fraction=self._dead.fraction,
            steps=options.steps,
            checkpoint_rate=saved,
            batches=len(self._objective.batches),
        )
        self._find(result)
        return journal.answer(result)

    def _matrix(self, optimizer: Optimizer, like: Hessian | None) -> Hessian:
        """The matrix that decides about this optimizer's steps, at the present weights."""
        objective = self._objective
        if like is None:
            memory = self._subject.spec.memory_bytes
            if self._setup.plain:
                return Hessian(objective, memory=memory, wanted=1)
            diagonal_N = self._setup.diagonal(objective, optimizer)
            return PreconditionedHessian(objective, diagonal_N=diagonal_N, memory=memory, wanted=1)
        if self._setup.plain:
            return Hessian(objective, like=like)
        diagonal_N = self._setup.diagonal(objective, optimizer)
        return PreconditionedHessian(objective, diagonal_N=diagonal_N, like=like)

    def _lanczos(self, operator: Hessian, tol: float, products: int) -> LanczosResult:
        return lanczos(
            operator, Wanted(1, 0), tol=tol, max_matvecs=products, capacity=self._operator.plan.capacity,
            seed=self._subject.spec.seed, probability=_FAILURE, recheck=0, stop=self._journal.stop,
        )  # fmt: skip

    def _bound(self) -> Bound:
        half = self._setup.limit / 2
        rates = critical_rates(self._top - self._residual, self._upper)
        return Bound(
            rate=self._setup.limit / self._top if self._top > 0 else None,
            interval=(half * rates[0], half * rates[1]) if rates else None,
            limit=self._setup.limit,
            lambda_max=self._top,
            residual=self._residual,
        )

    def _sharpness(self, optimizer: Optimizer) -> float | None:
        """λ at the present weights, roughly; None where it cannot be had."""
        try:
            operator = self._matrix(optimizer, self._operator)
            return float(self._lanczos(operator, _ROUGH, _FEW).values_K[0])
        except CurvError:
            return None

    def _confirmed(self, trials: list[Trial]) -> list[Trial]:
        """The trials, those of the highest rates replaced by longer runs until one of these works.

        Where training is at the edge of chaos a short run may live by luck, so a neighbour must live too.
        """
        known = {t.rate: t for t in trials}
        good = highest_working(trials)
        while good is not None and good.steps == self._options.steps:
            for rate in (good.rate, _NEIGHBOUR * good.rate):
                trial = self._trial(rate, self._options.confirm * self._options.steps)
                if trial is None:
                    break
                known[rate] = trial
                if trial.verdict != "works":
                    break
            else:
                break
            if trial is None:
                break
            good = highest_working(known.values())
        # Longer runs fail where short ones lived: go on below, until a long one works.
        for _ in range(_LOWER if known and good is None else 0):
            rate = min(known) / FACTOR
            trial = self._trial(rate, self._options.confirm * self._options.steps)
            if trial is None:
                break
            known[rate] = trial
            if trial.verdict == "works":
                break
        return [known[rate] for rate in sorted(known)]

    def _trial(self, rate: float, steps: int | None = None) -> Trial | None:
        """A run at one rate; None where there is no time for it."""
        steps = steps or self._options.steps
        if self._journal.stop() is not None:
            return None
        self._journal.progress(Stage("rates", 0, None, f"{rate:.3g}"))
        ratio: list[float] = []
        above = not self._setup.adaptive and rate * self._top > self._setup.limit

        def look(taken: int, optimizer: Optimizer) -> None:
            if above and taken == steps:
                value = self._sharpness(optimizer)
                ratio.extend([] if value is None else [value * rate / self._setup.limit])

        course = rollout(
            self._objective, lambda: self._setup.make(self._objective), lambda _: rate, steps,
            look=look, stop=self._journal.stop,
        )  # fmt: skip
        if self._journal.stop() is not None:
            return None
        verdict = judge(course, self._dead, self._rounding, lambda: bool(ratio) and ratio[0] > 1)
        finite = course.finite
        trial = Trial(
            rate=rate, verdict=verdict, loss=course.losses[-1] if finite else None,
            lowest=min(course.losses) if finite else None,
            dead_fraction=course.dead.fraction if course.dead else None,
            sharpness_ratio=ratio[0] if ratio else None, steps=course.steps,
        )  # fmt: skip
        self._journal.item(trial)
        return trial

    def _along(self, rate: float) -> list[CurvaturePoint]:
        """λ along the run at a rate that works."""
        wanted = {0, round(0.2 * self._options.steps), self._options.steps}
        points: list[CurvaturePoint] = []

        def look(taken: int, optimizer: Optimizer) -> None:
            if taken in wanted and self._journal.stop() is None:
                value = self._top if taken == 0 else self._sharpness(optimizer)
                points.extend([] if value is None else [CurvaturePoint(taken, value)])

        rollout(
            self._objective, lambda: self._setup.make(self._objective), lambda _: rate, self._options.steps,
            look=look, stop=self._journal.stop,
        )  # fmt: skip
        return points

    def _warmed_up(self, rate: float) -> WarmUp | None:
        if self._journal.stop() is not None:
            return None
        steps = self._options.steps
        course = rollout(
            self._objective, lambda: self._setup.make(self._objective),
            lambda step: rate * min(1.0, (step + 1) / steps), 2 * steps, stop=self._journal.stop,
        )  # fmt: skip
        if course.steps < 2 * steps and course.finite:
            return None
        return WarmUp(
            rate=rate, steps=steps, verdict=judge(course, self._dead, self._rounding, lambda: False)
        )

    def _find(self, result: LrResult) -> None:
        journal, saved = self._journal, result.checkpoint_rate
        if result.highest is None and journal.complete:
            journal.find(NONE_WORKS, "rate", f"none of {len(result.trials)} rates works")
        elif result.bound.rate and result.fails_at and result.fails_at < 0.5 * result.bound.rate:
            journal.find(
                BELOW_BOUND, "rate",
                f"training fails at {result.fails_at:.3g} ({result.ends_by}), far below the bound "
                f"{result.bound.rate:.3g} from the curvature at the start",
                value=result.fails_at, threshold=result.bound.rate,
            )  # fmt: skip
        if saved is not None and result.fails_at is not None and saved >= result.fails_at:
            journal.find(
                CHECKPOINT_RATE, "rate",
                f"the rate in the checkpoint, {saved:.3g}, is above {result.fails_at:.3g}, where training fails "
                f"({result.ends_by})",
                value=saved, threshold=result.fails_at,
            )  # fmt: skip


def _half_gain(working: list[Trial], start: float, best: Trial | None) -> float | None:
    """The lowest rate with half of the best gain."""
    if best is None or best.loss is None:
        return None
    need = start - 0.5 * (start - best.loss)
    return min(t.rate for t in working if t.loss is not None and t.loss <= need)
