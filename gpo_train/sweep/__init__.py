"""Many runs of one recipe, compared: a sweep file, its rows, the processes that run them, one page."""
