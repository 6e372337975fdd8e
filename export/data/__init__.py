"""The data sets that the tasks are trained and judged on: where they come from, and how they are split."""
