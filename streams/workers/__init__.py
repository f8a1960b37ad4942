"""Workers: committed batches from internal topics to handlers, at least once."""
