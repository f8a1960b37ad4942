"""The HTTP routes, one file per resource.

Each knows its own requests and replies. `serving.http.app` puts them together.
"""
