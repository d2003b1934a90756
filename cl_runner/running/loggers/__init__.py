"""What a run tells TensorBoard, MLflow and Weights & Biases: a module for each, with functions."""
