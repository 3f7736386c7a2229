"""What draws: plan, worker, measuring, drawing again."""
