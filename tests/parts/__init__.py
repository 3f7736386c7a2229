"""Small real models and what several tests share."""
