"""PyTorch to ONNX: networks, training, exporter and its proof. Needs the extra ``export``."""
