"""The companion package: the tested code that the chapters import."""

__version__ = "0.1.0"
