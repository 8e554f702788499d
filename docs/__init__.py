"""The report and the scripts that regenerate its tables and figures."""
