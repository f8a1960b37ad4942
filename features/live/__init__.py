"""Live folding: deliveries of an entity's topic into the store, and its freshness."""
