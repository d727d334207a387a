"""Rollouts: what a policy is asked, what it says, and how that becomes what it is trained on."""
