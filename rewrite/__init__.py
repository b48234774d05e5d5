"""The science of sayagain: pure functions over Polars frames, Arrow tables and NumPy arrays.

Nothing in here knows about Beam, Airflow, Great Expectations, file paths, clocks or the environment.
"""
