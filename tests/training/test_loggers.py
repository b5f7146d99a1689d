"""Every tracker has the figures that it was given, read back by its own library, offline."""

import csv
import json
from pathlib import Path

import pytest

from curvcli.errors import UsageError
from curvcli.training.loggers import NAMES, make_logger

SERIES = [(10, {"hessian.top[0].value": 2.5, "gradients.loss": 0.25}), (20, {"hessian.top[0].value": 3.0})]  # fmt: skip


def fill(text: str) -> None:
    """Log the series."""
    logger = make_logger(text)
    for step, figures in SERIES:
        logger.log(step, figures)
    logger.close()


def test_lines_of_json(tmp_path: Path) -> None:
    """One a step."""
    fill(f"jsonl:{tmp_path / 'a.jsonl'}")
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert lines == [{"step": step, **figures} for step, figures in SERIES]


def test_a_table(tmp_path: Path) -> None:
    """One row a figure."""
    fill(f"csv:{tmp_path / 'a.csv'}")
    with (tmp_path / "a.csv").open() as file:
        rows = [(int(r["step"]), r["figure"], float(r["value"])) for r in csv.DictReader(file)]
    assert rows == [(step, n, v) for step, figures in SERIES for n, v in figures.items()]


@pytest.mark.filterwarnings("default")
def test_tensorboard(tmp_path: Path) -> None:
    """By its own reader of event files."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fill(f"tensorboard:{tmp_path}")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    found = [(e.step, e.value) for e in events.Scalars("hessian/top/0/value")]
    assert found == [(10, 2.5), (20, 3.0)]


@pytest.mark.filterwarnings("default")
def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline: the run's own summary."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = make_logger("wandb:a")
    for step, figures in SERIES:
        logger.log(step, figures)
    assert wandb.run.summary["hessian/top/0/value"] == 3.0
    assert wandb.run.summary["curvcli/step"] == 20
    logger.close()
    assert wandb.run is None


@pytest.mark.filterwarnings("default")
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own client, from a folder."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}")
    fill("mlflow:a")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("a").experiment_id])
    history = client.get_metric_history(run.info.run_id, "hessian/top/0/value")
    assert [(m.step, m.value) for m in history] == [(10, 2.5), (20, 3.0)]
    assert run.data.metrics["gradients/loss"] == 0.25


@pytest.mark.filterwarnings("default")
def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own database, in a folder."""
    pytest.importorskip("trackio", reason="trackio is not installed")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from trackio.sqlite_storage import SQLiteStorage

    fill("trackio:a")
    (name,) = SQLiteStorage.get_runs("a")
    logs = SQLiteStorage.get_logs("a", name)
    assert [(e["step"], e["hessian/top/0/value"]) for e in logs] == [(10, 2.5), (20, 3.0)]


@pytest.mark.filterwarnings("default")
def test_a_run_of_wandb_that_is_open_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the training's figures and these, and is open afterwards."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(project="training", dir=str(tmp_path))
    try:
        run.log({"loss": 1.0})
        fill("wandb:other")
        run.log({"loss": 0.5})
        assert wandb.run is run
        assert run.summary["loss"] == 0.5
        assert run.summary["hessian/top/0/value"] == 3.0
    finally:
        run.finish()


@pytest.mark.filterwarnings("default")
def test_a_run_of_mlflow_that_is_open_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the training's figures and these, and is open afterwards."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}")
    mlflow.set_experiment("training")
    with mlflow.start_run() as run:
        fill("mlflow:other")
        mlflow.log_metric("loss", 0.5, step=30)
        assert mlflow.active_run().info.run_id == run.info.run_id
    metrics = mlflow.MlflowClient().get_run(run.info.run_id).data.metrics
    assert metrics == {"hessian/top/0/value": 3.0, "gradients/loss": 0.25, "loss": 0.5}


@pytest.mark.filterwarnings("default")
def test_a_run_of_trackio_that_is_open_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training's own figures go to the same run before and after, at steps of its own."""
    trackio = pytest.importorskip("trackio", reason="trackio is not installed")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from trackio.sqlite_storage import SQLiteStorage

    run = trackio.init(project="training", name="own")
    trackio.log({"loss": 1.0})
    fill("trackio:other")
    trackio.log({"loss": 0.5})
    trackio.finish()
    assert SQLiteStorage.get_runs("training") == [run.name]
    assert "other" not in SQLiteStorage.get_projects()
    logs = SQLiteStorage.get_logs("training", run.name)
    assert [(e["step"], e.get("loss"), e.get("curvcli/step")) for e in logs] == [
        (0, 1.0, None), (1, None, 10), (2, None, 20), (3, 0.5, None),
    ]  # fmt: skip


def test_an_unknown_tracker_is_told() -> None:
    """With those that are known."""
    with pytest.raises(UsageError, match="Did you mean 'wandb'"):
        make_logger("wandv")
    assert len(NAMES) == 6
