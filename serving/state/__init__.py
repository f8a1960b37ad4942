"""What the gateway keeps up to date: catalogue, activity, releases, last good rows."""
