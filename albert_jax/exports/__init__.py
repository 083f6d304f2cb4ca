"""What other runtimes open: ONNX, StableHLO, the files of sentence-transformers, a model card."""
