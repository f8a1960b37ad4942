"""A package, so that its tests share one stack, and it ends with them."""
