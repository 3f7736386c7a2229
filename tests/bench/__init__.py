"""What is measured and not tested: `make bench`, `make bench-gpu`."""
