"""From a config to a finished run: checks, the plan, the loop. No tensor maths."""
