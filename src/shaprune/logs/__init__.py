"""Logs of a run in progress: a file of JSON lines, TensorBoard, MLflow."""
