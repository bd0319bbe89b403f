"""MLflow: the only place that imports it."""

import os

os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # else it tells every user of its database migrations
# A server that is gone must not hold up training: its defaults try for four minutes a call.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
