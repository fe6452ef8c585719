"""Where numbers of a run can go while it goes on: a file of JSON lines, TensorBoard, MLflow."""
