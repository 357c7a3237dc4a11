"""Prints the version of Python, and of the packages that talk to models: `{"python": "3.12.3", "litellm": "1.80.0"}`."""

import importlib.metadata
import json
import platform

versions = {"python": platform.python_version()}
for package in ("litellm", "openai"):
    try:
        versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(versions))
