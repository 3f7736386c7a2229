"""Campaigns that break things on purpose: `make test-faults`, a table of what was lost. Minutes to hours; not in CI."""
