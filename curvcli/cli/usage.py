"""What people are shown first of each command: examples, and the options that are used most."""

from typing import NamedTuple


class Usage(NamedTuple):
    """How a command is mostly used."""

    examples: tuple[tuple[str, str], ...]
    """Command lines and what each is for."""
    options: tuple[str, ...] = ()
    """Its own options that ``-h`` shows."""


# Of the options that all commands share, those that -h shows.
SHARED = ("model", "data", "loss", "batch_size", "max_batches", "params", "format", "output")

BEGIN = (
    (
        "curvcli init model.pt --model train.py:Net --data digits.npz --loss cross_entropy",
        "writes model.toml, and tries it once",
    ),
    ("curvcli gradients model.toml", "do signals and gradients get through the layers?"),
    ("curvcli hessian model.toml", "how sharp is the loss here, and which learning rates are stable?"),
)  # fmt: skip
"""The three commands to begin with."""

USAGE: dict[str, Usage] = {
    "init": Usage(
        (
            ("curvcli init model.pt", "writes model.toml; what is missing is left to fill in"),
            (BEGIN[0][0], "writes all of it, and tries it once"),
        ),
        ("to", "force"),
    ),
    "info": Usage((("curvcli info model.pt", "names, shapes and norms of all weights"),)),
    "doctor": Usage((("curvcli doctor", "does this installation compute what it should?"),)),
    "hessian": Usage(
        (
            ("curvcli hessian model.toml", "largest and smallest eigenvalues"),
            ("curvcli hessian model.toml --per-layer", "which layer is the sharpest?"),
            ("curvcli hessian model.toml --top 3 --bottom 0 --timeout 1m", "quicker"),
        ),
        ("top", "bottom", "per_layer", "max_matvecs", "timeout"),
    ),
    "saddle": Usage(
        (("curvcli saddle model.toml", "a minimum, a saddle point, or still on a slope?"),),
        ("max_matvecs", "timeout"),
    ),
    "lr": Usage(
        (
            ("curvcli lr model.toml", "a learning rate for SGD, tried in short runs"),
            ("curvcli lr model.toml --optimizer adam", "for Adam"),
        ),
        ("optimizer", "steps", "timeout"),
    ),
    "taylor": Usage(
        (
            ("curvcli taylor model.toml", "how far a quadratic model of the loss holds"),
            ("curvcli taylor model.toml --to later.pt", "on the way to another checkpoint"),
        ),
        ("direction", "to", "timeout"),
    ),
    "step": Usage(
        (("curvcli step model.toml", "one step of gradient descent, Newton and others"),),
        ("method", "save", "timeout"),
    ),
    "trace": Usage(
        (
            ("curvcli trace model.toml", "how much curvature in all, and in which tensors"),
            ("curvcli trace model.toml --tol 0.05", "to 5 %"),
        ),
        ("tol", "max_matvecs", "timeout"),
    ),
    "density": Usage(
        (
            ("curvcli density model.toml", "how all eigenvalues are spread"),
            ("curvcli density model.toml -o density.png", "as a picture"),
        ),
        ("steps", "max_probes", "timeout"),
    ),
    "landscape": Usage(
        (
            ("curvcli landscape model.toml", "the loss along a random line through the weights"),
            (
                "curvcli landscape model.toml --along eigen --dims 2 -o map.png",
                "a map, as a picture",
            ),
            ("curvcli landscape model.toml --to other.pt", "is there a barrier on the way?"),
            ("curvcli landscape model.toml --along pca --to checkpoints/", "the path of training"),
        ),
        ("along", "to", "dims", "radius", "timeout"),
    ),
    "sharpness": Usage(
        (
            ("curvcli sharpness model.toml", "how flat, whatever the scale of the layers?"),
            ("curvcli sharpness model.toml --measure worst --rho 0.1", "within a larger ball"),
        ),
        ("measure", "rho", "rise", "draws", "timeout"),
    ),
    "gradients": Usage(
        (
            ("curvcli gradients model.toml", "what vanishes, explodes, saturates or is dead"),
            ("curvcli gradients model.toml --worst 5", "the five worst layers"),
            ("curvcli gradients model.toml --reinit xavier,kaiming", "other initialisations"),
        ),
        ("worst", "reinit", "learning_rate"),
    ),
    "jacobian": Usage(
        (
            ("curvcli jacobian model.toml", "how much outputs move when inputs move"),
            ("curvcli jacobian model.toml --per-layer", "layer by layer"),
        ),
        ("per_layer", "wrt", "of", "top"),
    ),
    "backprop": Usage(
        (("curvcli backprop model.toml", "is the backward pass right, also of custom layers?"),),
        ("samples",),
    ),
    "track": Usage(
        (
            ("curvcli track model.toml checkpoints/", "all checkpoints of a run, in order"),
            ("curvcli track model.toml epoch*.pt --lr 0.1", "against the limit 2/lr"),
        ),
        ("lr", "max_matvecs", "timeout"),
    ),
    "compare": Usage(
        (
            ("curvcli compare model.toml other.pt", "which is better, and what differs for sure"),
            ("curvcli compare model.toml other.pt --per-class", "class by class"),
            (
                "curvcli compare model.toml --weights ema",
                "the average of the weights beside the last",
            ),
        ),
        ("per_class", "other_data", "weights"),
    ),
    "report": Usage(
        (
            (
                "curvcli report model.toml -o report.html",
                "everything about a checkpoint, on a page",
            ),
            ("curvcli report model.toml --compare other.pt -o report.html", "two side by side"),
            ("curvcli report model.toml checkpoints/ -o report.html", "a training run"),
        ),
        ("analysis", "compare", "budget", "static", "open"),
    ),
    "check": Usage(
        (
            ("curvcli check model.toml", "the rules of model.toml, or the usual ones"),
            ("curvcli check model.toml --rule 'hessian.top[0].value < 50'", "a rule of your own"),
            ("curvcli check model.toml --format junit -o health.xml", "for a CI system"),
        ),
        ("rules", "undecided", "budget", "baseline", "update_baseline"),
    ),
}
