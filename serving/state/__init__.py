"""State that the gateway keeps current: catalogue, activity, popularity, releases, last rows."""
