"""From request to slate: the nouns, the stage contracts, the runner and the reply."""
