"""Trained modules as files that run without zoo: ONNX and ``torch.export`` graphs with their preprocessing."""
