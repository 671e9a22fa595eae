"""Run folders as one page to read: tables, plots and pictures."""
