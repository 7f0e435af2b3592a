"""What everything stands on: parameter trees, random streams, errors, files, threads, records."""
