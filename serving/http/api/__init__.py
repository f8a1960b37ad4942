"""The HTTP routes, one file per resource. Each knows its own requests and replies.

How the parts behind them are put together is `serving.http.app`.
"""
