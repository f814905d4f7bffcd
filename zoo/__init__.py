"""zoo: architectures, datasets and callbacks for PyTorch Lightning."""

__version__ = "0.1.0.dev0"
