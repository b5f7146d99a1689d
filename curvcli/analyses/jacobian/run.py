"""`curvcli jacobian`: how a network stretches signals, for every sample, layer by layer and through time."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from curvcli.analyses.jacobian.command import JacobianOptions
from curvcli.analyses.jacobian.findings import KINKS, NONFINITE, NOT_CONVERGED, ROUNDING, SINGULAR
from curvcli.analyses.jacobian.parts import parameters, with_layers, with_time
from curvcli.analyses.jacobian.result import JacobianResult, Matrix, Status
from curvcli.analyses.jacobian.summary import quantiles, sample_jacobians
from curvcli.analyses.shared.answer import Answer
from curvcli.analyses.shared.journal import Journal, Stage
from curvcli.analyses.shared.subject import Subject
from curvcli.errors import NonFiniteError, UsageError
from curvcli.machine.containers import tensors_in
from curvcli.objective.batch import Batch
from curvcli.objective.calls import call_model
from curvcli.objective.faults import fault_in_data
from curvcli.objective.network import check_weights, set_mode, start_afresh
from curvcli.operators.jacobian.chunks import Chunks, Measured
from curvcli.operators.jacobian.jacobian import SMALL_PIECE, Structure, explore
from curvcli.operators.jacobian.spectra import Settings
from curvcli.operators.jacobian.taps import Passage, Target, find_source

# Entries of a matrix that --full prints, and matrices it prints unless --sample names some.
FULL_ENTRIES = 4096
FULL_MATRICES = 4
WORST = 5


def run(subject: Subject, options: JacobianOptions, journal: Journal) -> Answer[JacobianResult]:
    """Answer `curvcli jacobian`; see `JacobianOptions`.

    Raises:
        CurvError: wrong input; see the subclasses.
    """
    journal.progress(Stage("loading", 0, None))
    target = subject.target
    model = target.model
    batches, numbers = _choose(target.model_batches, options.sample)
    _ = target.weights.sha256, target.data_sha256
    journal.notes.extend(set_mode(model, subject.spec.train_mode))
    check_weights(model)
    _check_data(batches)
    positional, keywords, _ = next(target.model_batches[0].pieces(SMALL_PIECE)).data
    journal.notes.extend(start_afresh(model, lambda: call_model(model, positional, keywords)))
    settings = Settings(
        top=options.top,
        exact=options.exact,
        method=options.method,
        tol=options.tol,
        max_steps=max(1, options.max_matvecs // 2),
        probes=options.probes,
        seed=subject.spec.seed,
        keep=options.full,
        # The processes have different work: each asks for itself.
        stop=lambda: journal.stop_alone() is not None,
        progress=lambda j: journal.progress(Stage("steps", j, None)),
    )
    if options.wrt == "parameters" and "parameters" not in dict(model.named_modules()):
        return journal.answer(
            parameters(subject, journal, batches, Target(options.of, options.output_key), settings)
        )
    whole = target.model_batches[0]
    source, note = find_source(model, whole, options.wrt)
    passage = Passage(model, source, Target(options.of, options.output_key))
    if note:
        journal.note(note)
    journal.progress(Stage("looking at the network", 0, None))
    structure, notes = explore(passage, whole)
    journal.notes.extend(notes)
    if structure.coupled and options.sample:
        raise UsageError(
            "--sample cannot take samples out of a batch in which they depend on each other",
            "drop --sample, or choose the batch by --batch-size and --max-batches",
        )
    measured, chunks = _measure(subject, journal, passage, batches, structure, settings)
    result = _answer(
        journal, measured, chunks, numbers, str(source), str(passage.target), options.sample
    )
    piece = batches[0]
    if not structure.coupled and piece.splittable:
        piece = piece.take(range(min(piece.size, options.layer_samples, chunks.micro_batch)))
    if options.per_layer and journal.complete:
        result = with_layers(
            subject,
            journal,
            result,
            passage,
            piece,
            structure,
            replace(settings, top=1, keep=False),
        )
    if options.time and source.kind != "module-input" and options.of is None:
        result = with_time(subject, journal, result, passage, piece)
    return journal.answer(result)


def _choose(batches: Sequence[Batch], sample: list[int] | None) -> tuple[list[Batch], list[int]]:
    """The batches with only the samples asked for, and the samples' numbers."""
    total = sum(batch.size for batch in batches)
    if not sample:
        return list(batches), list(range(total))
    wrong = [i for i in sample if not 0 <= i < total]
    if wrong:
        raise UsageError(f"--sample {wrong[0]}: there are {total} samples", "count them from 0")
    if not all(batch.splittable for batch in batches):
        raise UsageError(
            "--sample cannot take samples out of a batch with tensors of different lengths",
            "drop --sample",
        )
    chosen: list[Batch] = []
    numbers: list[int] = []
    first = 0
    for batch in batches:
        rows = [i - first for i in sorted(set(sample)) if first <= i < first + batch.size]
        if rows:
            chosen.append(batch.take(rows))
            numbers.extend(first + i for i in rows)
        first += batch.size
    return chosen, numbers


def _check_data(batches: list[Batch]) -> None:

    for batch in batches:
        for tensor in tensors_in(batch.data[:2]):
            if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
                raise NonFiniteError(f"in the data, {fault_in_data([batch])}", "clean the inputs")


def _measure(
    subject: Subject,
    journal: Journal,
    passage: Passage,
    batches: list[Batch],
    structure: Structure,
    settings: Settings,
) -> tuple[list[Measured], Chunks]:

    total = sum(batch.size for batch in batches)
    chunks = Chunks(
        passage,
        batches,
        structure,
        settings,
        memory=subject.spec.memory_bytes,
        notes=journal.notes,
        progress=lambda done: journal.progress(Stage("samples", min(done, total), total)),
        ranks=subject.target.ranks,
    )
    measured = chunks.measured()
    cost = subject.count(subject.target.device)
    # Work is counted in products over all the data.
    cost.matvecs += round(sum(m.products * m.size for m in measured) / total)
    return measured, chunks


def _answer(
    journal: Journal,
    measured: list[Measured],
    chunks: Chunks,
    numbers: list[int],
    wrt: str,
    of: str,
    asked: list[int] | None,
) -> JacobianResult:

    spectra = [m.spectra for m in measured]
    rows, columns = spectra[0].rows, spectra[0].columns
    if len({(s.rows, s.columns) for s in spectra}) > 1 and not chunks.structure.coupled:
        journal.note("batches have Jacobians of several shapes; that of the first is named")
    samples = sample_jacobians(measured, numbers, chunks.structure.coupled)
    matrices: list[Matrix] = []
    if chunks.settings.keep:
        if rows * columns > FULL_ENTRIES:
            raise UsageError(
                f"--full prints matrices of at most {FULL_ENTRIES:,} entries; these are {rows} × {columns}",
                "choose a smaller pair by --wrt, --of and --output-key",
            )
        entries = [
            e for s in spectra if s.matrices_SMN is not None for e in s.matrices_SMN.tolist()
        ]
        shown = len(entries) if asked else FULL_MATRICES
        matrices = [
            Matrix(s.index, e) for s, e in zip(samples[:shown], entries[:shown], strict=True)
        ]
        if len(entries) > shown:
            journal.note(f"--full shows {shown} of {len(entries)} matrices: choose by --sample")
    status = _status(journal, measured, numbers, chunks)
    formed = spectra[0].all_SL is not None
    ranked = sorted(samples, key=lambda s: -(s.spectral or 0.0))
    result = JacobianResult(
        wrt=wrt,
        of=of,
        outputs=rows,
        inputs=columns,
        method="dense" if formed else "golub-kahan",
        coupled=chunks.structure.coupled,
        status=status,
        frobenius=quantiles(
            [s.frobenius for s in samples], [s.frobenius_standard_error for s in samples]
        ),
        spectral=quantiles(
            [s.spectral for s in samples], [s.singular_values[0].residual for s in samples]
        ),
        condition=quantiles(
            [s.condition if s.condition is not None else float("inf") for s in samples]
        )
        if formed
        else None,
        effective_rank=quantiles([s.effective_rank for s in samples]) if formed else None,
        stable_rank=quantiles([s.stable_rank for s in samples]),
        samples=samples,
        worst=[s.index for s in ranked[:WORST]],
        matrices=matrices,
        layers=[],
        path=None,
        time=[],
        ntk=None,
        micro_batch=chunks.micro_batch,
    )
    _findings(journal, result)
    return result


def _status(
    journal: Journal, measured: list[Measured], numbers: list[int], chunks: Chunks
) -> Status:
    reason = journal.stop()
    done = sum(m.size for m in measured)
    if reason is not None and (
        done < len(numbers) or not all(m.spectra.complete for m in measured)
    ):
        journal.cut_short()
        journal.note(f"ended early: {done} of {len(numbers)} samples were looked at")
        return reason
    if all(m.spectra.complete for m in measured):
        return "converged"
    journal.cut_short()
    return "max_matvecs"


def _findings(journal: Journal, result: JacobianResult) -> None:
    broken = [s.index for s in result.samples if s.spectral is None]
    if broken:
        journal.find(
            NONFINITE,
            "samples",
            f"the Jacobian of {len(broken)} of {len(result.samples)} samples is not finite, first of sample "
            f"{broken[0]}",
            value=float(len(broken)),
        )
    known = [s for s in result.samples if s.spectral is not None]
    open_ = [v.residual or 0.0 for s in known for v in s.singular_values if not v.converged]
    total = sum(len(s.singular_values) for s in known)
    if open_ and result.status in ("converged", "max_matvecs"):
        rounding = result.status == "converged"
        why = (
            "stay above the tolerance because of rounding in the network"
            if rounding
            else "have not converged"
        )
        journal.find(
            ROUNDING if rounding else NOT_CONVERGED,
            "samples",
            f"the residuals of {len(open_)} of {total} singular values {why}",
            value=max(open_),
        )
    jumps = [s.jump for s in known if s.jump is not None]
    if jumps:
        journal.find(
            KINKS,
            "samples",
            f"{len(jumps)} of {len(result.samples)} samples sit on a kink (equal entries of a maximum pool, a "
            f"rectifier at 0), where the Jacobian jumps by up to {max(jumps):.2g}: their figures are those of one side",
            value=float(len(jumps)),
        )
    singular = [s for s in result.samples if s.condition_at_least is not None]
    if singular and result.condition is not None:
        journal.find(
            SINGULAR,
            "condition",
            f"the Jacobian of {len(singular)} of {len(result.samples)} samples is singular to rounding: an output "
            "direction that no input moves (saturation, softmax, dead units)",
            value=float(len(singular)),
        )
