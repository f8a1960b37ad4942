"""One contract for policy updates: (policy, group, reward, reference) -> policy and KL."""
