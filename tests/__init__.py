"""The tests, a package so that they can share what lies in tests/helpers."""
