"""The version: its only home. The build passes it on to the package metadata and to the binary."""

__version__ = "0.1.0"
