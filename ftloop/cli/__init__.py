"""The command line: Job, config files, records of runs, subcommands."""
