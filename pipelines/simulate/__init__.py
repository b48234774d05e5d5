"""A made-up assistant and its users: logs with a known truth, to try settings on. Written by this project, seeded."""
