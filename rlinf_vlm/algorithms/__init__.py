"""The maths of training as pure functions: losses and schedules."""
