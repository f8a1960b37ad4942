"""Features per user, item, author and query: declared once, folded from events, kept by Feast.

Knows `streams`. Does not know models or requests.
"""
