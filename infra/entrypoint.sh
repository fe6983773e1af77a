#!/bin/sh
# Secrets by file for programs that read their environment alone (Prefect, MLflow): NAME_FILE=/path becomes NAME.
# Flywheel's own settings read their files themselves (infra/settings.py). Nothing of it is on a command line.
set -eu
for name in PREFECT_API_AUTH_STRING PREFECT_SERVER_API_AUTH_STRING PREFECT_SERVER_DATABASE_CONNECTION_URL \
    MLFLOW_BACKEND_STORE_URI MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY; do
    eval "file=\${${name}_FILE:-}"
    [ -n "$file" ] || continue
    if [ ! -s "$file" ]; then
        echo "${name}_FILE names '$file', which is missing or empty; infra/make_secrets.py makes it" >&2
        exit 2
    fi
    value=$(cat "$file")
    export "$name=$value"
    unset "${name}_FILE"
done
exec "$@"
