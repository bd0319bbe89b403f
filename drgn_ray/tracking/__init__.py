"""MLflow: the only place that imports it."""

import os

os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # else it tells every user of its database migrations
