"""The suite; `make test`. Small real parts in parts/, measurements in bench/."""
