"""Runs in the image's own interpreter: compiles the files that stdin names, below the root that argv[1] names."""

import os
import py_compile
import sys

root = sys.argv[1]
assert os.__file__.startswith(root + "/"), "the standard library is not the image's: " + os.__file__
for line in sys.stdin:
    path = line.rstrip("\n")
    try:
        # Unchecked: the image is read-only and its files have no times. Code remembers its place in the container.
        py_compile.compile(
            root + "/" + path,
            dfile="/" + path,
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
    except py_compile.PyCompileError:
        # Packages ship templates and files for other Pythons under this name, too.
        continue
