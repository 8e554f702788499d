"""In the speed page's program, contenders do the same work, and tables show the measurements."""

from inspect import getclosurevars
from pathlib import Path
from subprocess import Popen
from typing import Any
from unittest.mock import Mock, call, patch

import numpy as np
import pytest

from docs import speed
from numpy_fnn import NumpyModel
from numpy_mnist import BATCH_SIZE, SEED, train

pytestmark = pytest.mark.pages

X = np.random.default_rng(0).standard_normal((BATCH_SIZE + 10, 784), np.float32)
Y = np.arange(len(X)) % 10
BATCH = (X[:BATCH_SIZE], Y[:BATCH_SIZE])
products: list[Any] = []


class Watched(np.ndarray):
    """An array that records each matrix product of itself or of an array computed from it."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if ufunc is np.matmul:
            products.append([(array.shape, array.strides) for array in inputs])
        plain = [np.asarray(a) if isinstance(a, Watched) else a for a in inputs]
        return np.asarray(getattr(ufunc, method)(*plain, **options)).view(Watched)


@pytest.mark.parametrize("name", ["PyTorch", "JAX"])
def test_contender_takes_the_steps_of_the_lab(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jax" if name == "JAX" else "torch")
    curves: list[Any] = []
    monkeypatch.setattr(speed, "load_dataset", lambda *_: ("", (X, Y), (X[:0], Y[:0]), ""))
    monkeypatch.setattr(speed, "plot_curve", lambda *lists, **_: curves.extend(lists))
    speed.run(name, "")
    expected = train(NumpyModel(SEED), (X, Y), (X, Y), rng=SEED)
    np.testing.assert_allclose(np.hstack(curves), expected.losses + expected.accuracies, rtol=1e-4)


def test_scikit_learn_takes_the_steps_of_the_lab() -> None:
    model = NumpyModel(SEED)
    epoch, predict = speed.sklearn_mlp(model, *BATCH, X)
    epoch(None)  # draws weights and biases, which we replace by the lab's
    network = getclosurevars(predict).nonlocals["mlp"]
    network.coefs_ = [model.W1.copy(), model.W2.copy(), model.W3.copy()]
    network.intercepts_ = [np.zeros_like(b) for b in network.intercepts_]
    assert epoch(None) == pytest.approx(train(model, BATCH, BATCH, 1).losses[0], rel=1e-4)
    np.testing.assert_allclose(network.coefs_[0], model.W1, rtol=1e-3, atol=1e-6)
    assert network.batch_size == BATCH_SIZE


def test_matrix_products_have_the_shapes_and_strides_of_a_step() -> None:
    model = NumpyModel(SEED)
    model.W1, model.W2, model.W3 = (W.view(Watched) for W in (model.W1, model.W2, model.W3))
    model.backward(-model.forward(X[:BATCH_SIZE]), needs_input_grad=False)
    speed.matrix_products(model, X, Y, X)[0](None)
    assert [] != sorted(products[:8]) == sorted(products[8:])


def test_tables_show_median_and_range(monkeypatch: Any, capsys: Any) -> None:
    measure = Mock(side_effect=[(n**2, n**2 / 1000) for n in range(48)])  # median ≠ mean
    monkeypatch.setattr(speed, "measure", measure)
    monkeypatch.setattr("sys.argv", ["speed", "--rounds", "3", "--busy", "2"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # no JAX
    speed.main()
    turns = measure.call_args_list
    assert turns == turns[:16] * 3  # interleaved
    assert turns[5:7] == [call("PyTorch", "data", *x) for x in ((0, speed.ONE_THREAD), (2, {}))]
    _, whole, epoch = capsys.readouterr().out.split("\n\n")
    assert "| PyTorch | 400.00 (16.00–1296.00) | 441.00 (25.00–1369.00) |" in whole
    assert "| PyTorch | 0.44 (0.03–1.37) | 0.53 (0.05–1.52) |" in epoch


@pytest.mark.parametrize("name", [speed.LAB, "matrix products only"])
def test_measurement_ends_its_busy_processes(name: str, data_dir: Path) -> None:
    with patch.object(Popen, "kill", autospec=True, side_effect=Popen.kill) as kill:
        whole, epoch = speed.measure(name, str(data_dir), 2, speed.ONE_THREAD)
    Path(speed.PICTURE).unlink()
    assert whole > epoch > 0
    assert [killed.args[0].wait(9) < 0 for killed in kill.call_args_list] == [True, True]
