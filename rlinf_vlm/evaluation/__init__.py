"""Evaluation: what the model answered, judged and summed up. Plain Python, no torch."""
