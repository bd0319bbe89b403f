#!/usr/bin/env bash
# MLflow for several machines, until it is ended: records in a database, files in a folder, at one address and for no other
# name of it (a page in a browser that claims to be the server is refused).
#
#     export MLFLOW_BACKEND_STORE_URI='postgresql+psycopg2:///mlflow?host=/var/run/postgresql'
#     mlflow_server.sh 10.0.0.5:5000 /shared/mlartifacts
#
# More flags of `mlflow server` may follow.  The database, which may hold a password, is no argument, since all users of a
# machine see those; its address names the driver (pip install 'drgn-ray[postgres]'), since SQLAlchemy's default changes.
set -euo pipefail
: "${MLFLOW_BACKEND_STORE_URI:?say where records go}"
address=${1:?say at which address, as in 10.0.0.5:5000} artifacts=${2:?say which folder files go to}

export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false # for language models; without, it takes a fifth of the memory
exec mlflow server --host "${address%:*}" --port "${address##*:}" --workers 2 \
  --allowed-hosts "$address,localhost:*,127.0.0.1:*" --artifacts-destination "$artifacts" "${@:3}"
