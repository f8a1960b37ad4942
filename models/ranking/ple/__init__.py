"""The multi-task ranker (PLE): its recipe, inputs, data, network, training and runtime."""
