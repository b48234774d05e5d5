"""`python -m pipelines JOB` is `sayagain JOB`."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main())
