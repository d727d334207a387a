"""Commands that measure: how fast the trainer is, what each switch is worth, and how it compares with others."""
