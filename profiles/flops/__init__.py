"""FLOPs, parameters and layer tables of PyTorch networks and ONNX files. Public names are in `profiles`."""
