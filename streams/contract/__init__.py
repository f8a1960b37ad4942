"""The contract with producers: events, columns, topics, tokens and the clock."""
