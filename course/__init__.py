"""Tooling of the course: the `course` command. `companion` never imports it."""
