"""`python3 infra/make_secrets.py`: the secrets of a deployment, a file each; needs Python and nothing else.

Compose mounts each file where a service needs it and refuses to start without; in Kubernetes the folder becomes one
Secret (`docs/deployment.md`). Nothing is ever overwritten: the databases keep the passwords they were made with. The
folder is its owner's alone. The files are not: a container's user, who is another, reads them where they are mounted.

`teacher_key` is left empty, for whoever has one.
"""

import argparse
import base64
import secrets
import sys
from pathlib import Path

ROLES = ("flywheel", "prefect", "mlflow")
FOLDER = Path(__file__).parent / "secrets"


def password() -> str:
    return secrets.token_urlsafe(32)


def made(database: str) -> dict[str, str]:
    """Name and content of each file.

    Args:
        database: PostgreSQL's HOST:PORT.
    """
    passwords = {role: password() for role in ROLES}
    url = {role: f"{role}:{passwords[role]}@{database}/{role}" for role in ROLES}
    s3_user, s3_password = "flywheel", password()
    roles = "".join(
        f"CREATE ROLE {role} LOGIN PASSWORD '{passwords[role]}';\nCREATE DATABASE {role} OWNER {role};\n"
        f"REVOKE CONNECT ON DATABASE {role} FROM PUBLIC;\n"
        for role in ROLES
    )
    return {
        "postgres_password": password(),
        "roles.sql": roles,
        "database_url": f"postgresql://{url['flywheel']}",
        "prefect_database_url": f"postgresql+asyncpg://{url['prefect']}",
        "mlflow_database_url": f"postgresql+psycopg://{url['mlflow']}",
        "prefect_auth": f"flywheel:{password()}",
        "mlflow_webhook_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "s3_user": s3_user,
        "s3_password": s3_password,
        "s3_credentials": f"[default]\naws_access_key_id = {s3_user}\naws_secret_access_key = {s3_password}\n",
        "gateway_tokens": f"app:{password()}",
        "redaction_key": password(),
        "webhook_secret": password(),
        "grafana_password": password(),
        "teacher_key": "",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the secrets of a deployment, a file each.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where they go (default infra/secrets)")
    parser.add_argument("--database", default="postgres:5432", help="PostgreSQL's HOST:PORT (default postgres:5432)")
    chosen = parser.parse_args()
    if chosen.folder.exists():
        print(f"{chosen.folder} is there already and stays as it is; name another --folder", file=sys.stderr)
        return 2
    # Whole under another name first: a half-made folder would start half a deployment.
    partial = chosen.folder.with_name(f".{chosen.folder.name}.partial")
    partial.mkdir(mode=0o700, parents=True)
    for name, content in made(chosen.database).items():
        (partial / name).write_text(content)
        (partial / name).chmod(0o444)
    partial.rename(chosen.folder)
    print(f"made {chosen.folder}; the gateway's first token is in gateway_tokens, behind the colon", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
