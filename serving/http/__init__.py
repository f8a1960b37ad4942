"""The HTTP API: the application, its routes, API keys and limits."""
