"""Privacy, gates, releases and what people see of them. Imports of `rewrite` only its contracts; never Beam or Airflow."""
