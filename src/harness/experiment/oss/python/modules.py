"""Prints as JSON the modules of its arguments that this Python lacks; fails where the Python is too old for the fork."""

import importlib.util
import json
import sys

if sys.version_info < (3, 10):
    sys.exit(f"the fork needs Python 3.10 or later, and this is {sys.version.split()[0]}")
print(json.dumps([name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]))
