"""From request to slate: the nouns, the contract of a stage, the runner, the surfaces."""
