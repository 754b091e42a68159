"""TensorRT and TensorRT-RTX: engines from verified ONNX files, and what runs them."""
