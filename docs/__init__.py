"""The report and the script that regenerates its tables and figures."""
