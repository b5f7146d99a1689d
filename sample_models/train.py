"""Remake the sample checkpoints and their data files, or check that the stored ones still match.

python sample_models/train.py [NAME ...]          remake all samples, or the named ones
python sample_models/train.py --check [NAME ...]  remake them in memory and compare
"""

import argparse
import math
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian

HERE = Path(__file__).resolve().parent
SEED = 0
TOLERANCE = 1e-4  # largest absolute difference --check accepts where a remake is not bitwise equal
DIGITS_TRAIN = 1437  # the other 360 of the 1797 digits are held out
CONTEXT = 64

Data = tuple[Tensor, Tensor]


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, -2), target.flatten())


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": cross_entropy,
    "mse": F.mse_loss,
}


# Data


def digits() -> Data:
    """All digits in a fixed random order, standardised with one mean and one deviation."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(pixels))
    x = torch.from_numpy(pixels[order]).float()
    seen = x[:DIGITS_TRAIN]
    return (x - seen.mean()) / seen.std(), torch.from_numpy(labels[order]).long()


def digits_sample() -> Data:
    """The first 256 training digits."""
    x, y = digits()
    return x[:256], y[:256]


def breast_cancer() -> Data:
    """All 569 rows, every feature standardised; 1.0 is benign, 0.0 malignant."""
    features, labels = load_breast_cancer(return_X_y=True)
    x = (features - features.mean(axis=0)) / features.std(axis=0)
    return torch.from_numpy(x).float(), torch.from_numpy(labels).float().unsqueeze(1)


def text_bytes() -> Tensor:
    return torch.tensor(list((HERE / "text.txt").read_bytes()))


def text_windows(starts: Tensor) -> Data:
    text = text_bytes()
    at = starts.unsqueeze(1) + torch.arange(CONTEXT)
    return text[at], text[at + 1]


def text_sample() -> Data:
    """32 windows spread evenly over the text."""
    last = len(text_bytes()) - CONTEXT - 1
    return text_windows(torch.linspace(0, last, 32).long())


def adding(count: int, generator: torch.Generator, steps: int = 100) -> Data:
    """The adding problem: the sum of the two marked values, one in each half of a sequence."""
    values = torch.rand(count, steps, generator=generator)
    first = torch.randint(steps // 2, (count, 1), generator=generator)
    second = torch.randint(steps // 2, steps, (count, 1), generator=generator)
    marks = torch.zeros(count, steps).scatter(1, torch.cat((first, second), 1), 1.0)
    return torch.stack((values, marks), 2), (values * marks).sum(1, keepdim=True)


def adding_sample() -> Data:
    return adding(64, torch.Generator().manual_seed(SEED + 1))


def teacher_sample() -> Data:
    """256 points in four dimensions, labelled by six random tanh units with some noise."""
    generator = torch.Generator().manual_seed(SEED + 2)
    x = torch.randn(256, 4, generator=generator)
    teacher = 0.75 * torch.randn(4, 6, generator=generator)
    noise = 0.1 * torch.randn(256, 1, generator=generator)
    return x, torch.tanh(x @ teacher).sum(1, keepdim=True) + noise


DATA: dict[str, Callable[[], Data]] = {
    "digits.npz": digits_sample,
    "breast_cancer.npz": breast_cancer,
    "text.npz": text_sample,
    "adding.npz": adding_sample,
    "teacher.npz": teacher_sample,
}


# Training


def digit_batches(steps: int, size: int = 64) -> Iterator[Data]:
    """Batches of training digits, reshuffled at every pass."""
    x, y = digits()
    done = 0
    while True:
        for rows in torch.split(torch.randperm(DIGITS_TRAIN), size):
            if done == steps:
                return
            yield x[rows], y[rows]
            done += 1


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Data],
    loss: str = "cross_entropy",
) -> None:
    model.train()
    for x, y in batches:
        model.zero_grad()
        torch.autograd.backward(LOSSES[loss](model(x), y))
        optimizer.step()


def train_digits_mlp(model: nn.Module) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    fit(model, optimizer, digit_batches(steps=300))


def train_digits_cnn(model: nn.Module) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    fit(model, optimizer, digit_batches(steps=150))


def train_digits_lstm(model: nn.Module) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.1)
    fit(model, optimizer, digit_batches(steps=300))


def train_long_lstm(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(SEED)
    batches = (adding(32, generator) for _ in range(300))
    fit(model, torch.optim.Adam(model.parameters(), lr=1e-3), batches, loss="mse")


def train_bytes_gpt(model: nn.Module) -> None:
    starts = len(text_bytes()) - CONTEXT
    batches = (text_windows(torch.randint(starts, (16,))) for _ in range(600))
    fit(model, torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1), batches)


def train_saddle(model: nn.Module) -> None:
    """Start from hidden units that are equal in pairs: equal units get equal gradients for ever.

    L-BFGS comes close to the best point with two pairs; Newton steps, which do not mind a
    saddle, take the gradient to machine precision.
    """
    assert isinstance(model, models.Regressor)
    model.double()
    with torch.no_grad():
        for tensor in (model.hidden.weight, model.hidden.bias, model.out.weight.T):
            tensor[1::2] = tensor[::2]
    x, y = teacher_sample()
    x, y = x.double(), y.double()
    optimizer: torch.optim.Optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=1000,
        history_size=20,
        tolerance_grad=1e-8,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        model.zero_grad()
        loss = F.mse_loss(model(x), y)
        torch.autograd.backward(loss)
        return loss.item()

    optimizer.step(closure)
    objective = flat_objective(model, (x, y), "mse")
    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    for _ in range(4):
        values, vectors = torch.linalg.eigh(hessian(objective)(vector))
        bent = values.abs() > 1e-9 * values.abs().max()
        vectors, values = vectors[:, bent], values[bent]
        vector = vector - vectors @ (vectors.T @ grad(objective)(vector) / values)
    nn.utils.vector_to_parameters(vector, model.parameters())
    model.float()


def train_vanishing_sigmoid(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    fit(model, optimizer, digit_batches(steps=200))


def train_exploding(model: nn.Module) -> None:
    """The sample is the fresh initialisation."""


def train_dead_relu(model: nn.Module) -> None:
    """Far too long steps on the biases of the third layer, then a normal training."""
    assert isinstance(model, models.DeepMLP)
    bias = model.layers.get_parameter("linear3.bias")
    fit(model, torch.optim.Adam([bias], lr=2.0), digit_batches(steps=25))
    fit(model, torch.optim.SGD(model.parameters(), lr=0.05), digit_batches(steps=500))


def train_linear_regression(model: nn.Module) -> None:
    """The least-squares solution, every weight moved by about 0.02."""
    assert isinstance(model, models.LinearRegression)
    x, y = breast_cancer()
    with_ones = torch.cat((x, torch.ones(len(x), 1)), 1).double()
    solution = torch.linalg.lstsq(with_ones, y.double()).solution.flatten().float()
    moved = solution + 0.02 * torch.randn(len(solution))
    with torch.no_grad():
        model.linear.weight.copy_(moved[:-1])
        model.linear.bias.copy_(moved[-1:])


SAMPLES: dict[str, Callable[[nn.Module], None]] = {
    "digits_mlp": train_digits_mlp,
    "digits_cnn": train_digits_cnn,
    "digits_lstm": train_digits_lstm,
    "long_lstm": train_long_lstm,
    "bytes_gpt": train_bytes_gpt,
    "saddle": train_saddle,
    "vanishing_sigmoid": train_vanishing_sigmoid,
    "exploding": train_exploding,
    "dead_relu": train_dead_relu,
    "linear_regression": train_linear_regression,
}


# What a sample shows


def flat_objective(model: nn.Module, data: Data, loss: str) -> Callable[[Tensor], Tensor]:
    """The loss as a function of all parameters in one vector."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    x, y = data

    def objective(vector: Tensor) -> Tensor:
        pieces = torch.split(vector, [shape.numel() for shape in shapes])
        tensors = {n: p.view(s) for n, p, s in zip(names, pieces, shapes, strict=True)}
        return LOSSES[loss](functional_call(model, tensors, (x,)), y)

    return objective


def dense_hessian(model: nn.Module, data: Data, loss: str) -> Tensor:
    """The whole Hessian at the stored parameters, in double precision."""
    vector = nn.utils.parameters_to_vector(model.parameters()).detach().double()
    x, y = data
    result: Tensor = hessian(flat_objective(model, (x.double(), y.double()), loss))(vector)
    return result


def accuracy(model: nn.Module, data: Data) -> float:
    with torch.no_grad():
        right: Tensor = model(data[0]).argmax(-1) == data[1]
    return right.float().mean().item()


def facts(model: nn.Module, data: Data, loss: str) -> Iterator[str]:
    """What can be said about a sample, in float32 unless stated."""
    x, y = data
    if x.is_floating_point():
        x = x.clone().requires_grad_()
    model.zero_grad()
    value = LOSSES[loss](model(x), y)
    torch.autograd.backward(value)
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    norm = math.sqrt(sum(g.double().square().sum().item() for g in gradients.values()))
    count = sum(p.numel() for p in model.parameters())
    yield f"{count} parameters, loss {value.item():.5g}, gradient norm {norm:.3g}"

    if loss == "cross_entropy":
        yield f"accuracy {accuracy(model, data):.4f} on the data file"
    if loss == "cross_entropy" and not isinstance(model, models.BytesGPT):
        held_out = tuple(t[DIGITS_TRAIN:] for t in digits())
        yield f"accuracy {accuracy(model, (held_out[0], held_out[1])):.4f} on held-out digits"
    if isinstance(model, models.BytesGPT):
        shares = torch.bincount(text_bytes()).double() / len(text_bytes())
        yield f"unigram entropy of the text {torch.special.entr(shares).sum().item():.4f}"
    if isinstance(model, models.DeepMLP):
        norms = [g.norm().item() for n, g in gradients.items() if n.endswith("weight")]
        yield f"weight gradient of the first layer {norms[0]:.3g}, of the last {norms[-1]:.3g}"
        yield from dead_units(model, x)
    if isinstance(model, models.DigitsLSTM | models.AddingLSTM):
        assert x.grad is not None
        steps = model.steps if isinstance(model, models.DigitsLSTM) else x.shape[1]
        norms = x.grad.reshape(len(x), steps, -1).norm(dim=(0, 2)).tolist()
        yield f"input gradient at the first step {norms[0]:.3g}, at the last {norms[-1]:.3g}"
    if isinstance(model, models.Regressor | models.LinearRegression):
        matrix = dense_hessian(model, data, loss)
        low, high = torch.linalg.eigvalsh(matrix)[[0, -1]].tolist()
        rho = norm**2 / (2 * max(abs(low), abs(high)) * value.item())
        yield f"dense float64 Hessian: eigenvalues {low:.6g} to {high:.6g}, rho {rho:.3g}"
    if isinstance(model, models.LinearRegression):
        with_ones = torch.cat((data[0], torch.ones(len(x), 1)), 1).double()
        error = (matrix - 2 / len(x) * with_ones.T @ with_ones).abs().max().item()
        yield f"largest difference from the closed form {error:.3g}"


def dead_units(model: models.DeepMLP, x: Tensor) -> Iterator[str]:
    """The share of units per ReLU layer that fire for no example."""
    for name, layer in model.layers.named_children():
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            yield f"{name}: {(x <= 0).all(0).float().mean().item():.1%} of the units are dead"


# Making and checking


def settings(name: str) -> dict[str, Any]:
    return tomllib.loads((HERE / f"{name}.toml").read_text(encoding="utf-8"))


def build(name: str) -> nn.Module:
    config = settings(name)
    model: nn.Module = getattr(models, config["model"].split(":")[1])(**config["model-args"])
    return model


def difference(new: dict[str, Tensor], stored: dict[str, Tensor]) -> float:
    """The largest absolute difference; infinite where names, types or shapes do not agree."""
    if [(n, t.dtype, t.shape) for n, t in sorted(new.items())] != [
        (n, t.dtype, t.shape) for n, t in sorted(stored.items())
    ]:
        return math.inf
    return max((t.double() - stored[n].double()).abs().max().item() for n, t in new.items())


def check(name: str, model: nn.Module, data: Data) -> bool:
    """Compare a remade sample with the stored one."""
    config = settings(name)
    stored = build(name)
    try:
        load_model(stored, HERE / config["checkpoint"], strict=True)
        with np.load(HERE / config["data"]) as arrays:
            stored_data = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        print(f"  MISMATCH, the stored sample cannot be loaded: {error}")
        return False
    good = True
    for part, gap in (
        ("checkpoint", difference(model.state_dict(), stored.state_dict())),
        ("data", difference(dict(zip("xy", data, strict=True)), stored_data)),
    ):
        if gap == 0:
            print(f"  {part}: identical")
        else:
            verdict = "matches" if gap <= TOLERANCE else "MISMATCH"
            print(f"  {part}: {verdict}, max difference {gap:.3g} (tolerance {TOLERANCE:g})")
        good = good and gap <= TOLERANCE
    return good


def save(name: str, model: nn.Module, data: Data) -> None:
    config = settings(name)
    save_model(model, str(HERE / config["checkpoint"]))
    np.savez_compressed(HERE / config["data"], x=data[0].numpy(), y=data[1].numpy())


def main() -> int:
    parser = argparse.ArgumentParser(description="Remake or check the sample checkpoints.")
    parser.add_argument("names", metavar="NAME", nargs="*", help="samples (default: all)")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(SAMPLES))
    if unknown:
        parser.error(f"no such sample: {', '.join(unknown)} (there are {', '.join(SAMPLES)})")

    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    good = True
    for name in arguments.names or SAMPLES:
        start = time.perf_counter()
        config = settings(name)
        torch.manual_seed(SEED)
        model = build(name)
        SAMPLES[name](model)
        model.eval()
        data = DATA[config["data"]]()
        print(f"{name} ({time.perf_counter() - start:.1f} s)")
        for fact in facts(model, data, config["loss"]):
            print(f"  {fact}")
        if arguments.check:
            good = check(name, model, data) and good
        else:
            save(name, model, data)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
