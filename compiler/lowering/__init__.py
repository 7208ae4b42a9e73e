"""From a graph to kernels and memory: where each value lies, which kernel computes it, when memory is free again."""
