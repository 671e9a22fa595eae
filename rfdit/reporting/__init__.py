"""The report: run folders as one page of tables, plots and samples."""
