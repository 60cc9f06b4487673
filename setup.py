"""Build hook: compiles the model with mypyc when VMAWELD_COMPILE=1, else leaves it as plain Python."""

import os

from setuptools import setup

COMPILED = [
    "src/vmaweld/abi.py",
    "src/vmaweld/events.py",
    "src/vmaweld/snapshot.py",
]

if os.environ.get("VMAWELD_COMPILE") == "1":
    from mypyc.build import mypycify

    setup(ext_modules=mypycify(COMPILED, opt_level="3"))
else:
    setup()
