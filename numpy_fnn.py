"""Operators, loss and model of a three-layer feed-forward network, written by hand in NumPy.

An operator's `forward` stores in `memory` what its `backward` needs. `backward` takes G, the
gradient of the loss with respect to the operator's output, and returns the gradient with respect
to its inputs. ⊙ is the elementwise product. Numbers such as (1.4) refer to docs/derivations.md.

Operators keep the dtype of their inputs, float32 or float64. They don't copy their inputs, so an
array must not change between `forward` and `backward`. An operator raises ValueError if a shape is
wrong, and RuntimeError if its `backward` is called before its `forward`.
"""

from typing import Any

import numpy as np


def check_shape(name: str, array: np.ndarray, expected: tuple[int, ...]) -> None:
    """Raise ValueError unless `array` has the shape `expected`, even if NumPy could broadcast."""
    if array.shape != expected:
        raise ValueError(f"{name} has shape {array.shape}, expected {expected}")


class NumpyOp:
    """Base class of the operators.

    Attributes
    ----------
    memory : dict of str to array
        What the last `forward` stored for `backward`; "y" is the output.
    epsilon : float
        The number ε that Log adds to its input, so that its output is finite at 0.
    """

    def __init__(self) -> None:
        self.memory: dict[str, np.ndarray] = {}
        self.epsilon = 1e-12

    def check_grad(self, grad_y: np.ndarray) -> None:
        """Raise RuntimeError before any forward, or ValueError if `grad_y` has a wrong shape."""
        name = type(self).__name__
        if not self.memory:
            raise RuntimeError(f"{name}.backward was called before {name}.forward")
        check_shape(f"grad_y of {name}.backward", grad_y, self.memory["y"].shape)


class Matmul(NumpyOp):
    """Matrix product.

    Y = X W  (1.1),  grad_x = G Wᵀ  (1.4),  grad_w = Xᵀ G  (1.5)
    """

    def forward(self, x: np.ndarray, W: np.ndarray) -> np.ndarray:
        """Return y (1.1), shape (N, d'), for x (N, d) and W (d, d')."""
        if x.ndim != 2 or W.ndim != 2 or x.shape[1] != W.shape[0]:
            raise ValueError(f"Matmul got x {x.shape} and W {W.shape}, expected (N, d) and (d, d')")
        y = x @ W
        self.memory = {"x": x, "W": W, "y": y}
        return y

    def backward(self, grad_y: np.ndarray, needs_input_grad: bool = True) -> tuple[Any, np.ndarray]:
        """Return grad_x (1.4), (N, d), or None if it is not needed, and grad_w (1.5), (d, d')."""
        self.check_grad(grad_y)
        grad_x = grad_y @ self.memory["W"].T if needs_input_grad else None
        grad_w = self.memory["x"].T @ grad_y
        return grad_x, grad_w


class Relu(NumpyOp):
    """Rectified linear unit, on arrays of any shape.

    Y = max(X, 0)  (2.1),  grad_x = G ⊙ [X > 0], where [·] is 1 if true, else 0  (2.4)
    """

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return y (2.1), shaped like x; NaN stays NaN."""
        y = np.maximum(x, 0)
        self.memory = {"x": x, "y": y}
        return y

    def backward(self, grad_y: np.ndarray) -> np.ndarray:
        """Return grad_x (2.4), shaped like grad_y."""
        self.check_grad(grad_y)
        return grad_y * (self.memory["x"] > 0)


class Log(NumpyOp):
    """Natural logarithm, finite at 0, on arrays of any shape.

    Y = ln(X + ε)  (3.1),  grad_x = G / (X + ε)  (3.4)
    """

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return y (3.1), shaped like x; x must not be negative."""
        y = np.log(x + self.epsilon)
        self.memory = {"x": x, "y": y}
        return y

    def backward(self, grad_y: np.ndarray) -> np.ndarray:
        """Return grad_x (3.4), shaped like grad_y."""
        self.check_grad(grad_y)
        return grad_y / (self.memory["x"] + self.epsilon)


class Softmax(NumpyOp):
    """Softmax over the last axis; subtracts the maximum of each row, so that exp cannot overflow.

    Y = exp(X − max X) / Σₖ exp(Xₖ − max X)  (4.1),  grad_x = Y ⊙ (G − Σₖ Gₖ Yₖ)  (4.3)
    """

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return y (4.1), shaped like x: probabilities, which sum to 1 in each row."""
        exp = np.exp(x - x.max(axis=-1, keepdims=True))
        y = exp / exp.sum(axis=-1, keepdims=True)
        self.memory = {"y": y}
        return y

    def backward(self, grad_y: np.ndarray) -> np.ndarray:
        """Return grad_x (4.3), shaped like grad_y."""
        self.check_grad(grad_y)
        y = self.memory["y"]
        return y * (grad_y - (grad_y * y).sum(axis=-1, keepdims=True))


class NumpyLoss:
    """Mean negative log-likelihood.

    L = −(1/N) Σ T ⊙ P  (5.1),  grad_p = −T / N  (5.2)

    P are the log-probabilities `pred`, T the one-hot targets `target`, both of shape (N, C).
    """

    def get_loss(self, pred: np.ndarray, target: np.ndarray) -> float:
        """Return the loss (5.1), in nats per image."""
        if pred.ndim != 2 or len(pred) == 0 or target.shape != pred.shape:
            raise ValueError(f"pred and target must be (N>0, C), got {pred.shape}, {target.shape}")
        # A float64 target would turn every gradient of a float32 model into float64.
        self.target = np.asarray(target, dtype=pred.dtype)
        # np.float64 is a Python float with the method item(), which the course's loop calls.
        return np.float64(-(self.target * pred).sum() / len(pred))

    def backward(self) -> np.ndarray:
        """Return grad_p (5.2), the gradient with respect to `pred`, shape (N, C)."""
        if not hasattr(self, "target"):
            raise RuntimeError("NumpyLoss.backward was called before NumpyLoss.get_loss")
        return -self.target / len(self.target)


class NumpyModel:
    """x → matmul_1 → relu_1 → matmul_2 → relu_2 → matmul_3 → softmax → log, without biases.

    Attributes
    ----------
    SHAPES : dict
        The shapes (d, d') of the weights. You can change the hidden widths, 256 and 64.
    W1, W2, W3 : array
        The weights, float32. They are first drawn uniformly from ±1/√d (9.1) with `rng`, a
        generator or a seed. You can assign others.
    x1_grad, relu_1_grad, x2_grad, relu_2_grad, x3_grad, softmax_grad, log_grad : array
        The gradients with respect to the *inputs* of the operators (x1 is the input of matmul_1).
    W1_grad, W2_grad, W3_grad : array
        The gradients with respect to the weights.
    """

    SHAPES = {"W1": (784, 256), "W2": (256, 64), "W3": (64, 10)}

    def __init__(self, rng: np.random.Generator | int | None = None) -> None:
        rng = np.random.default_rng(rng)
        weights: list[np.ndarray] = [
            rng.uniform(-(d**-0.5), d**-0.5, (d, width)).astype(np.float32)
            for d, width in self.SHAPES.values()
        ]
        self.W1, self.W2, self.W3 = weights
        self.matmul_1, self.matmul_2, self.matmul_3 = Matmul(), Matmul(), Matmul()
        self.relu_1, self.relu_2 = Relu(), Relu()
        self.softmax, self.log = Softmax(), Log()

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Return log-probabilities (N, 10) of x (N, 784), (N, 28, 28) or (N, 1, 28, 28)."""
        x = np.asarray(x, dtype=self.W1.dtype)  # float64 images would make all results float64
        if x.shape[1:] not in ((784,), (28, 28), (1, 28, 28)):
            raise ValueError(f"x must be (N, 784), (N, 28, 28) or (N, 1, 28, 28), got {x.shape}")
        y = self.matmul_1.forward(x.reshape(len(x), 784), self.W1)
        y = self.relu_1.forward(y)
        y = self.matmul_2.forward(y, self.W2)
        y = self.relu_2.forward(y)
        y = self.matmul_3.forward(y, self.W3)
        y = self.softmax.forward(y)
        return self.log.forward(y)

    def backward(self, grad_y: np.ndarray, needs_input_grad: bool = True) -> None:
        """Store every gradient (6.1) for `grad_y` (N, 10); x1_grad is None if it is not needed."""
        self.log_grad = self.log.backward(grad_y)
        self.softmax_grad = self.softmax.backward(self.log_grad)
        self.x3_grad, self.W3_grad = self.matmul_3.backward(self.softmax_grad)
        self.relu_2_grad = self.relu_2.backward(self.x3_grad)
        self.x2_grad, self.W2_grad = self.matmul_2.backward(self.relu_2_grad)
        self.relu_1_grad = self.relu_1.backward(self.x2_grad)
        self.x1_grad, self.W1_grad = self.matmul_1.backward(self.relu_1_grad, needs_input_grad)

    def optimize(self, learning_rate: float) -> None:
        """Take one step of SGD, W ← W − η grad (7.1), where η is the learning rate.

        The weights become new arrays. An array that you assigned to a weight doesn't change.
        """
        if not hasattr(self, "W1_grad"):
            raise RuntimeError("NumpyModel.optimize was called before NumpyModel.backward")
        # NumPy adds in place in this order, so an epoch is 3 % shorter than with W − η grad.
        self.W1 = -learning_rate * self.W1_grad + self.W1
        self.W2 = -learning_rate * self.W2_grad + self.W2
        self.W3 = -learning_rate * self.W3_grad + self.W3
