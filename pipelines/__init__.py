"""The Beam jobs and the command line: `sayagain JOB` = `python -m pipelines JOB`."""
