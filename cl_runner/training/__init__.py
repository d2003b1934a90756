"""One phase of training: batches, steps and how they are executed, the optimizer, the costs."""
