"""int8, fp16 and bf16 graphs from verified fp32 ONNX files."""
