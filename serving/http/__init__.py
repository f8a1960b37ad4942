"""The HTTP entry point: the application, its routes, keys and limits."""
