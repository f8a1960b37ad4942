"""What a producer may say and what the platform promises: events, columns, topics, tokens, the clock."""
