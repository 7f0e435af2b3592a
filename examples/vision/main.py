"""An own vision model on a folder per class, with Adam and a cosine schedule: `python main.py`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import Tensor, nn

from fedham_flwr import Run, simulate


class SmallNet(nn.Module):
    """Two convolutions and a head; `smallnet.width` is a setting.

    Args:
        shape: (channels, height, width) of an image.
        outputs: number of classes.
        width: channels of the first convolution.
    """

    def __init__(self, shape: tuple[int, ...], outputs: int, width: int = 8) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(shape[0], width, 3, padding=1), nn.GroupNorm(2, width), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(8 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [b, k] of images [b, c, h, w]."""
        logits: Tensor = self.head(self.features(x))
        return logits


def write_images(folder: Path, per_class: int = 40) -> None:
    """scikit-learn's digits as PNG files, a folder for each class: put your own pictures in its place."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number in range(10):
        (folder / f"digit-{number}").mkdir(parents=True)
        for place, image in enumerate(digits.images[digits.target == number][:per_class]):
            Image.fromarray((image * 15).astype("uint8")).save(folder / f"digit-{number}" / f"{place:03}.png")


def main() -> Run:
    """Train for a few rounds; every client ends with a head of its own."""
    folder = Path(tempfile.mkdtemp()) / "images"
    write_images(folder)
    return simulate(
        "fedper", model=SmallNet, dataset=str(folder), clients=5, num_server_rounds=6, optimizer="adam",
        learning_rate=0.01, schedule="cosine", smallnet={"width": 12}, results_dir="results",
    )  # fmt: skip


if __name__ == "__main__":
    print(main().summary["final"])
