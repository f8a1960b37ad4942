"""Rules: conditions on items in CEL, compiled to predicates over columns, and what they do."""
