"""Tooling of the course: the `course` command. `companion` never imports it."""

import sys

# `nbformat` validates with jsonschema, which on import would build a grammar of international addresses, for a format
# that no notebook uses: 1.5 of the 2 seconds that a command needs to start.
sys.modules.setdefault("rfc3987_syntax", None)
