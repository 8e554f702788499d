"""The network, loss and SGD step of numpy_fnn.py in PyTorch, with gradients from autograd."""

import numpy as np
import torch


class TorchModel:
    """The reference model. Its weights and the inputs of its operators keep their gradients."""

    def __init__(self, W1: np.ndarray, W2: np.ndarray, W3: np.ndarray) -> None:
        self.W1, self.W2, self.W3 = (torch.tensor(W, requires_grad=True) for W in (W1, W2, W3))

    def forward(self, x: np.ndarray) -> torch.Tensor:
        """Return log-probabilities (N, 10) of images x (N, ...), in the dtype of the weights."""
        self.x1 = torch.tensor(x).reshape(len(x), -1).requires_grad_()
        self.relu_1 = self.x1 @ self.W1
        self.x2 = torch.relu(self.relu_1)
        self.relu_2 = self.x2 @ self.W2
        self.x3 = torch.relu(self.relu_2)
        self.softmax = self.x3 @ self.W3
        self.log = torch.softmax(self.softmax, dim=-1)
        for tensor in (self.relu_1, self.x2, self.relu_2, self.x3, self.softmax, self.log):
            tensor.retain_grad()
        return torch.log(self.log + 1e-12)

    def backward(self, y_pred: torch.Tensor, target: np.ndarray) -> float:
        """Compute every gradient, and return the loss for one-hot targets (N, 10)."""
        for W in (self.W1, self.W2, self.W3):
            W.grad = None
        loss = -(y_pred * torch.tensor(target)).sum(dim=1).mean()
        loss.backward()
        return loss.item()

    def optimize(self, learning_rate: float) -> None:
        """Take one step of SGD."""
        with torch.no_grad():
            for W in (self.W1, self.W2, self.W3):
                W -= learning_rate * W.grad

    def gradient(self, name: str) -> np.ndarray:
        """Return the gradient that NumpyModel calls `name`, such as "softmax_grad" or "W1_grad"."""
        return getattr(self, name.removesuffix("_grad")).grad.numpy()
